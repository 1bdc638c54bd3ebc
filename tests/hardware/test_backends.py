from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from broken_backends import Good, WithFault
from torch import Tensor

import sparseflow as sf
from sparseflow import testing
from sparseflow.hardware import backends
from sparseflow.hardware.backends import SparseOp
from sparseflow.hardware.backends.dense import CompactOp
from sparseflow.hardware.workload import Geometry, Workload

# `cpu` has its turn in tests/kernels, `stream` in tests/streaming, `triton` in tests/triton.
ELSEWHERE = {"cpu", "stream", "triton"}


@pytest.mark.parametrize("name", sorted({*backends.available()} - ELSEWHERE))
def test_backend_keeps_every_rule(name: str) -> None:
    testing.check_backend(backends.get(name))


def test_ours_are_available() -> None:
    assert {"dense", "dense-compact"} <= set(sf.backends.available())
    assert sf.backends.available() == sorted(sf.backends.available())


def test_unknown_name_lists_the_choices_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no backend 'dens'.*did you mean 'dense'.*available: .*dense, dense-compact"):
        backends.get("dens")


def entry(value: str) -> EntryPoint:
    return EntryPoint("good", value, backends.GROUP)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install_entry(loaded: object) -> None:
        point = entry("somewhere:Good")
        monkeypatch.setattr(EntryPoint, "load", lambda self: loaded)
        monkeypatch.setattr(backends, "entry_points", lambda group: [point] if group == backends.GROUP else [])
        backends.get.cache_clear()

    yield install_entry
    backends.get.cache_clear()


@pytest.mark.parametrize("loaded", [Good, Good(), lambda: Good()], ids=["class", "instance", "function"])
def test_entry_point_brings_a_backend(install: Callable[[object], None], loaded: object) -> None:
    install(loaded)
    assert "good" in sf.backends.available()
    model = torch.nn.Linear(33, 7)
    before = model.weight.detach().clone()
    mask = torch.rand(7, 33) < 0.5
    sparse = sf.sparsify(model, {"weight": mask}, backend="good")
    x = torch.randn(3, 33)
    testing.assert_close(sparse(x), torch.nn.functional.linear(x, before * mask, model.bias))


def test_entry_point_that_is_no_backend_says_what_is_missing(install: Callable[[object], None]) -> None:
    install(dict)
    with pytest.raises(TypeError, match="'good' is a dict, which lacks members of Backend"):
        backends.get("good")


def test_entry_point_instance_that_is_no_backend(install: Callable[[object], None]) -> None:
    install(3)
    with pytest.raises(TypeError, match="'good' is a int, which lacks members of Backend"):
        backends.get("good")


def test_entry_point_of_another_name_than_its_backend(install: Callable[[object], None]) -> None:
    class Other(Good):
        name = "other"

    install(Other)
    with pytest.raises(ValueError, match=r"'good'.*calls itself 'other'"):
        backends.get("good")


def test_a_workload_that_a_named_backend_refuses_is_an_error(install: Callable[[object], None]) -> None:
    install(Good)
    model = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match="'good' cannot run 'weight': only one little layer"):
        sf.sparsify(model, {"weight": torch.ones(2, 3, dtype=torch.bool)}, backend="good")


def test_a_right_backend_passes() -> None:
    testing.check_backend(Good())


FAULTS = {
    "nothing": "supports at least one layer",
    "wordless": "unsupported gives its reason in words",
    "layout name": "layout begins with the backend's name",
    "geometry": r"is str\(geometry\)",
    "impure": "layout is a pure function",
    "any layout": "refuses the layout of another backend",
    "cost": r"cost is positive and finite: Cost\(forward=inf",
    "writes mask": "leaves the mask alone",
    "random": "pack is a pure function",
    "nnz": "nnz is the number of kept weights",
    "pack": "is the masked weight",
    "padding": "padding is zero after pack_values",
    "sign": r"unpack to \+0.0",
    "tensors": r"with_tensors\(tensors\(\)\) gives the same op",
    "writes x": "leave their inputs alone",
    "writes dy": "leave their inputs alone",
    "writes beside x": "and the memory around them",
    "rows only": "forward without bias, x and dy slices of wider tensors is finite",
    "mixes features": "forward without bias, feature-major x agrees",
    "dense dy": "dvalues, expanded dy is finite",
    "reads beyond": "forward, 7 rows is finite",
    "large batch": "forward, 129 rows agrees",
    "y strides": "contiguous y for a contiguous x",
    "bias": "forward, 7 rows agrees",
    "state": "after two forwards",
    "forward noise": "forward gives the same bits",
    "backward noise": "backward gives the same bits",
    "useless dx": "None for dx where it is not needed",
    "dx": "backward gives dx where it is needed",
    "gradient": "dvalues, contiguous x and dy agrees",
    "needs dx": "dvalues, contiguous x and dy, without dx agrees",
    "no empty batch": "an op takes an empty batch: RuntimeError: no rows",
    "any width": "forward, x too narrow is a ValueError: it was taken",
    "any length": "backward, too many values is a ValueError: it was taken",
}

FUSED_FAULTS = {
    "fused relu": "forward_fused, ReLU, no bias, contiguous x, contiguous y agrees",
    "fused bias": "forward_fused, bias, contiguous x, contiguous y agrees",
    "fused noise": "forward_fused gives the same bits",
    "always feature-major": "forward_fused gives a contiguous y unless",
    "never feature-major": "forward_fused gives a feature-major y where",
    "fused dx": "gives dx and dbias where needed, else None: no bias, without dx",
    "useless dbias": "gives dx and dbias where needed, else None: no bias, contiguous x",
    "dbias": "dbias, bias, contiguous x, contiguous dy agrees",
    "dx strides": "feature-major dx where x is",
    "relu gradient": "fused dvalues, ReLU, no bias, contiguous x, contiguous dy agrees",
    "relu at zero": "dbias, ReLU, bias, contiguous x, contiguous dy agrees",
    "y strides assumed": "fused dvalues, ReLU, no bias, feature-major x, contiguous dy agrees",
    "relu in place": "fused calls leave their inputs alone",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_broken_rule_is_found(fault: str) -> None:
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        testing.check_backend(WithFault(fault))


@pytest.mark.parametrize("fault", FUSED_FAULTS)
def test_each_broken_rule_of_a_fused_op_is_found(fault: str) -> None:
    with pytest.raises(AssertionError, match=FUSED_FAULTS[fault]):
        testing.check_backend(WithFault(fault, fused=True))


@pytest.mark.parametrize("fused", [False, True])
def test_a_right_op_passes_where_only_faults_are_added(fused: bool) -> None:
    testing.check_backend(WithFault("", fused))


def test_error_of_an_op_names_the_layer() -> None:
    class Raises(Good):
        def pack(self, mask: Tensor, layout: str) -> CompactOp:
            raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order") as error:
        testing.check_backend(Raises())
    assert error.value.__notes__ == ["backend 'good', linear, (7, 33), torch.float32, cpu, 231 weights kept"]


def test_kit_can_try_a_part_of_the_cases() -> None:
    class Recorded(Good):
        def pack(self, mask: Tensor, layout: str) -> CompactOp:
            kept.add(int(mask.sum()))
            return super().pack(mask, layout)

    tried = []
    for first in range(5):
        kept = set[int]()
        testing.check_backend(Recorded(), every=5, first=first)
        tried.append(kept)
    assert tried == [{231}, {1}, {116}, {13}, {0}]
    with pytest.raises(ValueError, match="first from 0 to every - 1, got every=2 and first=2"):
        testing.check_backend(Good(), every=2, first=2)


def test_kit_leaves_the_rng_alone() -> None:
    before = torch.get_rng_state()
    testing.check_backend(Good())
    assert torch.equal(torch.get_rng_state(), before)


def test_assert_close_measures_rms_over_rms() -> None:
    expected = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert testing.relative_error(expected * 1.5, expected) == pytest.approx(0.5)
    assert testing.relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert testing.relative_error(torch.ones(2), torch.zeros(2)) == float("inf")
    testing.assert_close(expected.float() * (1 + 1e-6), expected)
    with pytest.raises(AssertionError, match=r"y: relative error 1.0e-03, allowed 1e-05"):
        testing.assert_close(expected.float() * 1.001, expected, "y")
    with pytest.raises(AssertionError, match=r"expected shape \(2,\), got \(1, 2\)"):
        testing.assert_close(expected[None], expected)
    with pytest.raises(AssertionError):
        testing.assert_close(expected * float("nan"), expected)


@pytest.mark.parametrize("name", sorted({*backends.available()} - ELSEWHERE))
def test_gradient_that_overflows_at_a_pruned_place_stays_away_from_the_kept(name: str) -> None:
    op = pack(name, torch.tensor([[True, False]]))
    x, dy = torch.tensor([[2.0, float("inf")]]), torch.tensor([[1.0]])
    _, dvalues = op.backward(dy, x, op.pack_values(torch.ones(1, 2)), False)
    assert torch.equal(dvalues.flatten()[:1], torch.tensor([2.0]))
    assert not dvalues.flatten()[1:].any()


def pack(name: str, mask: Tensor) -> SparseOp:
    backend = backends.get(name)
    return backend.pack(mask, backend.layout(Workload(tuple(mask.shape))))


def test_geometry_survives_its_text() -> None:
    geometry = Geometry("conv2d", (1, 2), (3, 4), (5, 6), 7)
    assert Geometry.parse(str(geometry)) == geometry
    assert Geometry.parse(str(Geometry())) == Geometry()
    with pytest.raises(ValueError, match="expected a geometry such as 'linear'"):
        Geometry.parse("conv3d")


def test_workload_counts_uses_of_a_weight() -> None:
    linear = Workload((5, 4), rows=3)
    assert (linear.weights, linear.positions, linear.product_flops) == (20, 3, 120.0)
    conv = Workload((6, 2, 3, 3), Geometry("conv2d", (2, 2), (1, 1), (1, 1), 3), rows=4, image=(8, 7))
    assert conv.output_image((8, 7)) == (4, 4)
    assert conv.positions == 4 * 16
    assert conv.input_shape() == (4, 6, 8, 7)


def test_readiness_asks_the_gpu_too(monkeypatch: pytest.MonkeyPatch, install: Callable[[object], None]) -> None:
    class OnGpu(Good):
        def unsupported(self, work: Workload) -> str | None:
            return None if work.device.type == "cuda" else "needs a GPU"

    install(OnGpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for there, reason in ((False, "needs a GPU"), (True, None)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        found = backends.readiness()
        assert list(found) == backends.available()
        assert found["good"] == reason and found["dense"] is None
