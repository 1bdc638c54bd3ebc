from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from networks import mlp, random_masks
from torch import nn

import sparseflow as sf
from sparseflow.hardware import backends, measure, routing
from sparseflow.hardware.plan import Plan
from sparseflow.hardware.workload import Workload

pytestmark = pytest.mark.usefixtures("fused")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "REPEATS", 1)


def named(model: nn.Module, backend: str = "dense-compact") -> Plan:
    return sf.plan(model, random_masks(model), backend=backend)


@pytest.mark.usefixtures("quick")
def test_plan_says_for_every_layer_and_backend_the_time_or_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    monkeypatch.setattr(backends.get("fused"), "unsupported", lambda work: "no fuel")
    compact = backends.get("dense-compact")
    monkeypatch.setattr(compact, "unsupported", lambda work: "no wings" if work.shape == (5, 10) else None)
    plan = sf.plan(model, random_masks(model), torch.randn(4, 12))
    assert [row.name for row in plan.rows] == ["0.weight", "2.weight"]
    for row in plan.rows:
        assert [candidate.backend for candidate in row.candidates] == backends.available()
        assert all((candidate.cost is None) != (candidate.reason is None) for candidate in row.candidates)
        assert row.backend in row.layout
        assert "measured now" in row.reason
    first, second = plan.rows
    costs = {candidate.backend: candidate.cost.seconds for candidate in first.candidates if candidate.cost}
    assert first.backend == min(costs, key=lambda name: costs[name])
    assert second.backend == "dense"
    text = str(plan)
    assert "cannot run: no wings" in text and "0.weight" in text and "measured" in text
    assert type(model[0]) is nn.Linear


@pytest.mark.usefixtures("quick")
def test_a_layer_that_the_sample_does_not_reach_says_so() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4)})
    model.forward = lambda x: model["used"](x)
    plan = sf.plan(model, random_masks(model), torch.randn(2, 4))
    assert "modelled" in plan.row("idle.weight").reason and "sample does not reach it" in plan.row("idle.weight").reason
    assert "sample does not reach" not in plan.row("used.weight").reason


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_a_convolution_on_an_image_smaller_than_its_kernel_is_timed_with_its_padding(mode: str) -> None:
    model = nn.Conv2d(3, 4, 5, padding=2, padding_mode=mode)
    plan = sf.plan(model, random_masks(model), torch.randn(2, 3, 3, 4))
    assert all(candidate.cost and candidate.cost.measured for candidate in plan.rows[0].candidates)


def spied_works(monkeypatch: pytest.MonkeyPatch) -> list[Workload]:
    works: list[Workload] = []

    def measure_nothing(able: dict[str, backends.Backend], work: Workload) -> dict[str, backends.Cost]:
        works.append(work)
        # Those further down the alphabet are slower, so that nothing comes near a crossing.
        return {name: backends.Cost(float(place), 1.0, 1.0, 1.0, 1, True) for place, name in enumerate(sorted(able))}

    monkeypatch.setattr(routing, "measure", measure_nothing)
    return works


def test_workload_of_a_convolution_sees_the_padded_image(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spied_works(monkeypatch)
    for mode in ("zeros", "reflect"):
        model = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)
        sf.plan(model, random_masks(model), torch.randn(2, 3, 6, 5))
    assert {work.positions for work in seen} == {2 * 30}
    assert {str(work.geometry) for work in seen} == {"conv2d:s1,1:p1,1:d1,1:g1", "conv2d:s1,1:p0,0:d1,1:g1"}


def test_layers_of_one_shape_and_density_share_a_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    works = spied_works(monkeypatch)
    model = nn.Sequential(nn.Linear(8, 8), nn.Flatten(0, 1), *[nn.Linear(8, 8) for _ in range(3)])
    masks = {f"{i}.weight": torch.eye(8, dtype=torch.bool) for i in (0, 2, 3, 4)}
    sf.plan(model, masks, torch.randn(2, 2, 8))
    timed = [(work.needs_dx, work.chained_in, work.chained_out) for work in works if work.density == 0.12]
    # The first layer's input needs no gradient; the other three are a chain, until `dense` wins and they are alike.
    chain = [(True, False, True), (True, True, True), (True, True, False)]
    assert timed == [(False, False, False), *chain, (True, False, False)]


def test_plan_survives_json_and_is_replayed_untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    masks = random_masks(model)
    monkeypatch.setattr(measure, "REPEATS", 1)
    plan = sf.plan(model, masks, torch.randn(4, 12))
    plan = replace(plan, rows=(replace(plan.rows[0], backend="dense", layout="dense/1/linear"), *plan.rows[1:]))
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan and str(again) == str(plan)
    monkeypatch.setattr(routing, "measure", lambda *_: pytest.fail("timed again"))
    sparse = sf.sparsify(model, masks, plan=again)
    assert {"0.weight": sparse[0].backend, "2.weight": sparse[2].backend} == again.backends
    assert sparse[0].op.layout == "dense/1/linear"


def test_plan_of_an_unknown_backend_stops_and_names_replan() -> None:
    model = mlp()
    plan = named(model)
    plan = replace(plan, rows=tuple(replace(row, backend="wafer", layout="wafer/1/linear") for row in plan.rows))
    with pytest.raises(ValueError, match=r"no backend 'wafer'.*available.*--replan"):
        sf.sparsify(model, random_masks(model), plan=plan)
    assert type(model[0]) is nn.Linear


def test_plan_of_a_layer_that_its_backend_no_longer_runs_names_replan(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    plan = named(model)
    monkeypatch.setattr(backends.get("dense-compact"), "unsupported", lambda work: "out of wings")
    with pytest.raises(ValueError, match=r"'dense-compact' cannot run '0.weight': out of wings.*--replan"):
        sf.sparsify(model, random_masks(model), plan=plan)


def test_plan_of_another_layout_version_stops() -> None:
    model = mlp()
    plan = named(model)
    plan = replace(plan, rows=tuple(replace(row, layout="dense-compact/0/linear") for row in plan.rows))
    with pytest.raises(ValueError, match="expected a layout that begins with 'dense-compact/1/'"):
        sf.sparsify(model, random_masks(model), plan=plan)


def test_plan_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"plan has no layer '0.weight'; it knows: weight"):
        sf.sparsify(mlp(), random_masks(mlp()), plan=named(nn.Linear(3, 2)))
    wider = nn.Sequential(nn.Linear(13, 10), nn.ReLU(), nn.Linear(10, 5))
    with pytest.raises(ValueError, match=r"plan for '0.weight' was made for shape \(10, 12\), got \(10, 13\)"):
        sf.sparsify(wider, random_masks(wider), plan=named(mlp()))
    conv, strided = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, stride=2)
    with pytest.raises(ValueError, match=r"plan for 'weight' was made for .*s1,1.*, got conv2d:s2,2"):
        sf.sparsify(strided, random_masks(strided), plan=named(conv))


def test_plan_is_made_for_masks_whose_density_moves_on() -> None:
    model = mlp()
    plan = named(model)
    sparse = sf.sparsify(copy.deepcopy(model), random_masks(model, 0.1, seed=5), plan=plan)
    assert sparse[0].backend == "dense-compact"


def test_measured_costs_are_positive_and_leave_the_rng_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "REPEATS", 1)
    model = mlp()
    state = torch.get_rng_state()
    plan = sf.plan(model, random_masks(model), torch.randn(4, 12, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), state)
    for row in plan.rows:
        for candidate in row.candidates:
            assert candidate.cost is not None
            assert candidate.cost.seconds > 0 and candidate.cost.bytes > 0
            assert candidate.to_json()["seconds"] == candidate.cost.seconds
