"""The backend `stream`: its literal order against the fast path, and its modelled cost in a plan."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sparseflow as sf
from sparseflow import testing
from sparseflow.hardware import backends, routing
from sparseflow.hardware.backends import Backend, Cost
from sparseflow.hardware.backends.base import EmulatedBackend
from sparseflow.hardware.backends.stream import order_of
from sparseflow.hardware.backends.stream_literal import Order, literal_backward, literal_forward
from sparseflow.hardware.workload import Geometry, Workload
from sparseflow.testing.closeness import same_bits

STREAM = backends.get("stream")
CONV = Geometry("conv2d", (2, 1), (1, 2), (1, 2), 2)
LAYERS = {"linear": ((9, 37), (11, 37), Geometry()), "conv2d": ((6, 2, 3, 2), (2, 4, 7, 6), CONV)}


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bound(products: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Of the difference of two sums of so many numbers in float arithmetic (Higham, 2002, section 3.1).

    products: the sums of absolute values. A result in 16 bits is rounded once more.
    """
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    unit = torch.finfo(accumulator).eps / 2
    # One more rounding each for the products themselves.
    terms = (count + 1) * unit
    return (2 * terms / (1 - terms) + (torch.finfo(dtype).eps if dtype != accumulator else 0)) * products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", LAYERS)
def test_fast_and_literal_differ_by_rounding_alone(kind: str, dtype: torch.dtype) -> None:
    shape, x_shape, geometry = LAYERS[kind]
    layout = STREAM.layout(Workload(shape, geometry))
    weight, x = drawn(shape, 0, dtype), drawn(x_shape, 1, dtype)
    mask = drawn(shape, 2) > 0.5
    op = STREAM.pack(mask, layout)
    values, order = op.pack_values(weight), order_of(op.layout)
    y = op.forward(x, values, None)
    dy = drawn(tuple(y.shape), 3, dtype)
    dx, dvalues = op.backward(dy, x, values, True)
    assert dx is not None
    literal_y = literal_forward(order, x, weight, mask, None)
    literal_dx, literal_dvalues = literal_backward(order, dy, x, weight, mask)
    assert literal_y.dtype == literal_dx.dtype == literal_dvalues.dtype == dtype
    expected = _absolute(geometry, x.double().abs(), (weight * mask).double().abs(), dy.double().abs(), mask)
    for got, literal, (sums, count) in zip((y, dx, dvalues), (literal_y, literal_dx, literal_dvalues), expected):
        apart = (got.double() - literal.double()).abs()
        assert bool((apart <= bound(sums, count, dtype)).all())


def _absolute(geometry: Geometry, x: Tensor, weight: Tensor, dy: Tensor, mask: Tensor) -> list[tuple[Tensor, int]]:
    """Of y, dx and dvalues: the sums of absolute values, and the most numbers that one adds up."""
    x.requires_grad_()
    weight.requires_grad_()
    if geometry.kind == "linear":
        y = F.linear(x, weight)
    else:
        y = F.conv2d(x, weight, None, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    y.backward(dy)
    assert x.grad is not None and weight.grad is not None
    tokens = dy.numel() // dy.shape[1]
    return [(y.detach(), weight[0].numel()), (x.grad, weight[:, 0].numel()), (weight.grad[mask], tokens)]


def test_backend_keeps_every_rule() -> None:
    testing.check_backend(STREAM)


def test_groups_have_consecutive_features_and_chain_in_order() -> None:
    assert Order(Geometry(), 3).spans(8) == [(0, 3), (3, 6), (6, 8)]
    assert Order(Geometry(), 3).spans(2) == [(0, 1), (1, 2)]
    # In float32 a one is lost beside 1e8: what is left tells who was added to whom.
    weight, x, all_kept = torch.tensor([[1e8, 1, -1e8, 1]]), torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool)
    for groups, expected in ((1, 1.0), (2, 0.0), (4, 1.0)):
        order = Order(Geometry(), groups)
        assert literal_forward(order, x, weight, all_kept, None).item() == expected
        dx, dvalues = literal_backward(order, torch.ones(4, 1), weight.t(), torch.ones(1, 1), all_kept[:, :1])
        assert dvalues.item() == expected and dx.tolist() == [[1.0]] * 4


@given(rows=st.integers(1, 4), outputs=st.integers(1, 5), inputs=st.integers(1, 12), seed=st.integers(0, 99))
def test_literal_path_is_exact_on_whole_numbers(rows: int, outputs: int, inputs: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight, x, dy, bias = (
        torch.randint(-9, 10, shape, generator=draw).float()
        for shape in ((outputs, inputs), (rows, inputs), (rows, outputs), (outputs,))
    )
    mask = torch.rand(weight.shape, generator=draw) < 0.4
    order, kept = Order(Geometry(), 3), weight * mask
    assert torch.equal(literal_forward(order, x, weight, mask, bias), x @ kept.t() + bias)
    dx, dvalues = literal_backward(order, dy, x, weight, mask)
    assert torch.equal(dx, dy @ kept) and torch.equal(dvalues, (dy.t() @ x)[mask])


def test_literal_convolution_is_exact_on_whole_numbers() -> None:
    shape, x_shape, geometry = LAYERS["conv2d"]
    order, bias = Order(geometry, 3), torch.arange(6.0)
    weight, x = drawn(shape, 0).mul(3).round(), drawn(x_shape, 1).mul(3).round()
    mask = drawn(shape, 2) > 0
    x.requires_grad_()
    kept = (weight * mask).requires_grad_()
    y = F.conv2d(x, kept, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    assert torch.equal(literal_forward(order, x.detach(), weight, mask, bias), y)
    dy = drawn(tuple(y.shape), 3).mul(3).round()
    y.backward(dy)
    dx, dvalues = literal_backward(order, dy, x.detach(), weight, mask)
    assert x.grad is not None and kept.grad is not None
    assert torch.equal(dx, x.grad) and torch.equal(dvalues, kept.grad[mask])


def test_layers_on_stream_train_to_the_bits_of_dense_compact() -> None:
    found = []
    for backend in ("stream", "dense-compact"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
        masks = {name: drawn(tuple(p.shape), 5) > 0 for name, p in model.named_parameters() if p.dim() > 1}
        sparse = sf.sparsify(model, masks, backend=backend)
        optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1, momentum=0.9)
        for step in range(3):
            optimizer.zero_grad()
            sparse(drawn((4, 1, 5, 5), step)).square().mean().backward()
            optimizer.step()
        found.append(sparse.state_dict())
    assert all(same_bits(tensor, found[1][key]) for key, tensor in found[0].items())


def test_a_layout_of_another_version_or_backend_is_refused() -> None:
    for layout in ("stream/0/linear/groups=8", "dense/1/linear", "stream/1/linear", "stream/1/linear/groups=many"):
        with pytest.raises(ValueError, match="backend 'stream': expected a layout that begins with"):
            STREAM.pack(torch.ones(2, 2, dtype=torch.bool), layout)


def test_modelled_seconds_are_shown_and_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(STREAM, EmulatedBackend) and not isinstance(backends.get("dense"), EmulatedBackend)
    timed: list[set[str]] = []

    def measure(able: dict[str, Backend], work: Workload) -> dict[str, Cost]:
        timed.append(set(able))
        # Each slower than any wafer.
        return {name: Cost(1.0, 0.0, 0.0, 0.0, 1, True) for name in able}

    monkeypatch.setenv("SPARSEFLOW_CACHE_DIR", "")
    monkeypatch.setattr(routing, "measure", measure)
    model = nn.Sequential(nn.Linear(12, 8))
    plan = sf.plan(model, {"0.weight": torch.ones(8, 12, dtype=torch.bool)}, torch.randn(4, 12))
    (row,) = plan.rows
    found = {candidate.backend: candidate.cost for candidate in row.candidates}["stream"]
    assert found is not None and not found.measured and 0 < found.seconds < 1
    assert row.backend != "stream" and timed and not any("stream" in names for names in timed)
    assert any("stream" in line and line.endswith(" modelled") for line in str(plan).splitlines())
    named = sf.plan(model, {"0.weight": torch.ones(8, 12, dtype=torch.bool)}, backend="stream")
    assert named.rows[0].backend == "stream"


def test_where_only_the_emulation_can_run_nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "available", lambda: ["stream"])
    with pytest.raises(ValueError, match="stream: only emulates another machine; name it to use it"):
        sf.plan(nn.Linear(3, 2), {"weight": torch.ones(2, 3, dtype=torch.bool)}, torch.randn(4, 3))
