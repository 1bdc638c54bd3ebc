from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparseflow as sf
from sparseflow import testing
from sparseflow.hardware import backends
from sparseflow.hardware.backends import Cost, SparseOp
from sparseflow.hardware.backends.dense import CompactOp, DenseCompact
from sparseflow.hardware.workload import Geometry, Workload


@pytest.mark.parametrize("name", backends.available())
def test_backend_keeps_every_rule(name: str) -> None:
    testing.check_backend(backends.get(name))


def test_ours_are_available() -> None:
    assert {"dense", "dense-compact"} <= set(sf.backends.available())
    assert sf.backends.available() == sorted(sf.backends.available())


def test_unknown_name_lists_the_choices_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no backend 'dens'.*did you mean 'dense'.*available: .*dense, dense-compact"):
        backends.get("dens")


class Good(DenseCompact):
    """A third party's backend: ours under another name. Only small linear layers, so that the kit is quick."""

    name = "good"

    def unsupported(self, work: Workload) -> str | None:
        small = work.geometry == Geometry() and work.dtype == torch.float32 and work.shape == (7, 33)
        return None if small else "only one little layer"

    def layout(self, work: Workload) -> str:
        return f"good/1/{work.geometry}"

    def cost(self, work: Workload) -> Cost:
        return Cost(forward=1.0, dgrad=1.0, wgrad=1.0, update=1.0, bytes=1, measured=False)

    def pack(self, mask: Tensor, layout: str) -> CompactOp:
        if not layout.startswith("good/1/"):
            raise ValueError(f"not a layout of good: {layout}")
        return CompactOp(layout, tuple(mask.shape), mask.flatten().nonzero().squeeze(1))


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


@dataclass(frozen=True, eq=False)
class Broken(CompactOp):
    """CompactOp with one rule broken."""

    fault: str = ""

    @property
    def nnz(self) -> int:
        return super().nnz + (self.fault == "nnz")

    def pack_values(self, weight: Tensor) -> Tensor:
        values = super().pack_values(weight)
        if self.fault == "padding":
            return torch.cat([values, values[:1]])
        return values + 1 if self.fault == "pack" else values

    def unpack_values(self, values: Tensor) -> Tensor:
        if self.fault == "padding":
            values = values[:-1] + 0 * values[-1]
        dense = super().unpack_values(values)
        return torch.where(dense == 0, -0.0, dense) if self.fault == "sign" else dense

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        if self.fault == "writes x":
            x.mul_(2)
        if self.fault == "strides":
            x = x.as_strided(x.shape, (x.shape[1], 1))
        if self.fault == "state":
            CACHE["x"] = x
        return F.linear(x, self.unpack_values(values), None if self.fault == "bias" else bias)

    def backward(self, dy: Tensor, x: Tensor, values: Tensor, need_dx: bool) -> tuple[Tensor | None, Tensor]:
        if self.fault == "state":
            x = CACHE["x"][: x.shape[0]]
        dvalues = self.pack_values(dy.t() @ x) * (1.001 if self.fault == "gradient" else 1.0)
        wanted = (need_dx or self.fault == "useless dx") and self.fault != "dx"
        return dy @ self.unpack_values(values) if wanted else None, dvalues

    def with_tensors(self, tensors: dict[str, Tensor]) -> Broken:
        return replace(self, index=tensors["index"].flip(0) if self.fault == "tensors" else tensors["index"])


CACHE: dict[str, Tensor] = {}


class WithFault(Good):
    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.calls = 0

    def unsupported(self, work: Workload) -> str | None:
        return "broken" if self.fault == "nothing" else super().unsupported(work)

    def layout(self, work: Workload) -> str:
        self.calls += 1
        layouts = {"layout name": "goo/1/linear", "geometry": "good/1", "impure": f"good/1/linear/{self.calls}"}
        return layouts.get(self.fault, super().layout(work))

    def cost(self, work: Workload) -> Cost:
        return replace(super().cost(work), forward=float("inf")) if self.fault == "cost" else super().cost(work)

    def pack(self, mask: Tensor, layout: str) -> CompactOp:
        if self.fault != "any layout" and not layout.startswith("goo"):
            raise ValueError(layout)
        if self.fault == "writes mask":
            mask.view(-1)[-1] = True
        index = mask.flatten().nonzero().squeeze(1)
        if self.fault == "random":
            index = index[torch.randperm(len(index))]
        return Broken(layout, tuple(mask.shape), index, self.fault)


FAULTS = {
    "nothing": "supports at least one layer",
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
    "writes x": "leave their inputs alone",
    "strides": "forward, strided x",
    "bias": "forward, contiguous x agrees",
    "state": "after two forwards",
    "useless dx": "None for dx where it is not needed",
    "dx": "backward gives dx where it is needed",
    "gradient": "dvalues, contiguous x agrees",
    "tensors": r"with_tensors\(tensors\(\)\) gives the same op",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_broken_rule_is_found(fault: str) -> None:
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        testing.check_backend(WithFault(fault))


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


@pytest.mark.parametrize("name", backends.available())
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
