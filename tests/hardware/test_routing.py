"""Which backend a layer gets where chains count, and at which density another would win."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from fused_backend import is_feature_major
from networks import mlp, random_masks
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.hardware import measure as measuring
from sparseflow.hardware import routing
from sparseflow.hardware.backends import Backend, Cost, get
from sparseflow.hardware.backends.dense import Dense
from sparseflow.hardware.flow import Flow
from sparseflow.hardware.plan import Plan, Row
from sparseflow.hardware.relu import PassedReLU
from sparseflow.hardware.routing import route_to
from sparseflow.hardware.workload import Geometry, Workload

pytestmark = pytest.mark.usefixtures("fused")

# Seconds of a step by backend.
Model = Callable[[Workload], Mapping[str, float]]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Model], list[Workload]]:
    """Gives timings by a formula in place of real ones; returns the list of what is then asked for."""

    def use(model: Model) -> list[Workload]:
        works: list[Workload] = []

        def measure(able: dict[str, Backend], work: Workload) -> dict[str, Cost]:
            works.append(work)
            return {name: Cost(model(work)[name], 0.0, 0.0, 0.0, 1, True) for name in able}

        monkeypatch.setattr(routing, "measure", measure)
        return works

    return use


def linear_in_density(work: Workload) -> Mapping[str, float]:
    return {"dense": 1.0, "dense-compact": 1.5, "fused": 0.2 + 2 * work.density}


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 7), nn.GELU(), nn.Linear(7, 6))


def eighth(model: nn.Module) -> dict[str, Tensor]:
    return random_masks(model, 0.125)


def test_a_chain_is_timed_and_chosen_as_it_would_run(timed: Callable[[Model], list[Workload]]) -> None:
    works = timed(linear_in_density)
    model = chain()
    plan = sf.plan(model, eighth(model), torch.randn(4, 8))
    edges = {work.shape: (work.relu, work.chained_in, work.chained_out, work.bias) for work in works}
    assert edges == {
        (9, 8): (True, False, True, True),
        (7, 9): (False, True, True, True),
        (6, 7): (False, True, False, True),
    }
    assert [(row.backend, row.relus, row.feature_major) for row in plan.rows] == [
        ("fused", ("1",), True),
        ("fused", (), True),
        ("fused", (), False),
    ]
    assert str(plan).splitlines()[-1] == (
        "3 of 3 layers on fused; 2 outputs feature-major to the next layer; 1 output rectified inside the layer"
    )


def test_a_broken_chain_is_timed_again_without_it(timed: Callable[[Model], list[Workload]]) -> None:
    def model_of_cost(work: Workload) -> Mapping[str, float]:
        # The last is better dense; without its chain the middle one is, too.
        fused = 2.0 if work.shape == (6, 7) or (work.shape == (7, 9) and not work.chained_out) else 0.5
        return {"dense": 1.0, "dense-compact": 1.5, "fused": fused}

    timed(model_of_cost)
    model = chain()
    plan = sf.plan(model, eighth(model), torch.randn(4, 8))
    assert list(plan.backends.values()) == ["fused", "dense", "dense"]
    assert not any(row.feature_major for row in plan.rows)
    assert plan.rows[0].relu and not plan.rows[1].relu


def test_outputs_that_are_added_stay_in_one_layout(timed: Callable[[Model], list[Workload]]) -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x) + self.b(2 * x))

    model = Added()
    masks = {**eighth(model), "b.weight": torch.ones(6, 8, dtype=torch.bool)}
    timed(linear_in_density)
    plan = sf.plan(model, masks, torch.randn(4, 8))
    assert list(plan.backends.values()) == ["fused", "dense", "fused"]
    assert not any(row.feature_major for row in plan.rows)
    named = sf.plan(model, masks, torch.randn(4, 8), backend="fused")
    assert [row.feature_major for row in named.rows] == [True, True, False]


def test_layers_that_come_together_after_all_are_chained(timed: Callable[[Model], list[Workload]]) -> None:
    # The last is dense in the chain, which breaks it, and fused outside of it.
    timed(lambda work: {"dense": 1.0, "dense-compact": 3.0, "fused": 2.0 if work.chained_in else 0.5})
    model = mlp()
    plan = sf.plan(model, eighth(model), torch.randn(4, 12))
    assert [(row.backend, row.feature_major) for row in plan.rows] == [("fused", True), ("fused", False)]


def test_a_backend_that_does_not_fuse_gets_no_chain_and_no_relu() -> None:
    model = chain()
    for backend in ("dense", "dense-compact"):
        plan = sf.plan(model, eighth(model), torch.randn(4, 8), backend=backend)
        assert not any(row.feature_major or row.relu for row in plan.rows)


def test_without_a_sample_a_named_backend_has_no_chains() -> None:
    model = chain()
    assert not any(row.feature_major or row.relu for row in sf.plan(model, eighth(model), backend="fused").rows)


def test_a_chain_into_a_layer_that_others_feed_too_is_one_for_a_named_backend() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) - self.b(x)

    model = Twice()
    plan = sf.plan(model, eighth(model), torch.randn(4, 8), backend="fused")
    assert [row.feature_major for row in plan.rows] == [True, False]


def test_a_named_backend_packs_no_layer_that_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get("fused"), "unsupported", lambda work: "no")
    monkeypatch.setattr(get("fused"), "pack", lambda *_: pytest.fail("packed"))
    works = {"fc.weight": Workload((3, 4))}
    (row,) = route_to("fused", works, {"fc.weight": Flow(relus=("act",))})
    assert row.backend == "fused" and not row.relu


@pytest.mark.parametrize(
    ("densities", "costs", "crossover", "words"),
    [
        # 0.2 + 2 d = 1.0
        ((0.125,), linear_in_density, 0.4, "dense would win above about 40 % density"),
        # The dense backend wins: 0.2 + 2 d = 1.0 lies below.
        ((0.5,), linear_in_density, 0.4, "fused would win below about 40 % density"),
        ((0.125,), lambda work: {**linear_in_density(work), "fused": 0.1 + 0.5 * work.density}, None, "at no higher"),
        ((0.5,), lambda work: {**linear_in_density(work), "fused": 1.1 + 0.1 * work.density}, None, "at no lower"),
        # Beyond the second measurement, at half of the weights.
        ((0.125,), lambda work: {**linear_in_density(work), "fused": 0.1 + work.density}, 0.9, "above about 90 %"),
    ],
)
def test_the_density_at_which_the_next_would_win(
    timed: Callable[[Model], list[Workload]],
    densities: tuple[float],
    costs: Model,
    crossover: float | None,
    words: str,
) -> None:
    works = timed(costs)
    mask = torch.arange(64).view(8, 8) < 64 * densities[0]
    row = sf.plan(nn.Linear(8, 8), {"weight": mask}, torch.randn(2, 8)).rows[0]
    assert row.crossover == (crossover if crossover is None else pytest.approx(crossover, rel=0.05))
    assert words in row.reason
    assert len(works) == 2


def test_a_full_layer_is_not_asked_what_comes_above(timed: Callable[[Model], list[Workload]]) -> None:
    timed(lambda work: {"dense": 3.0, "dense-compact": 2.0, "fused": 1.0})
    row = sf.plan(nn.Linear(8, 8), {"weight": torch.ones(8, 8, dtype=torch.bool)}, torch.randn(2, 8)).rows[0]
    assert row.crossover is None and "would win" not in row.reason


def test_plans_remember_chains_and_load_without_them(timed: Callable[[Model], list[Workload]]) -> None:
    timed(linear_in_density)
    model = chain()
    plan = sf.plan(model, eighth(model), torch.randn(4, 8))
    data = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(data) == plan and plan.rows[0].crossover is not None
    sparse = sf.sparsify(model, eighth(model), plan=Plan.from_json(data))
    assert [layer.relu for layer in sparse[::2]] == [True, False, False]
    assert [layer.feature_major for layer in sparse[::2]] == [True, True, False]
    assert type(sparse[1]) is PassedReLU
    for row in data["rows"]:
        for added in ("relus", "feature_major", "crossover"):
            del row[added]
    old = Plan.from_json(data)
    assert not any(row.relu or row.feature_major or row.crossover for row in old.rows)


def test_a_plan_whose_relu_the_model_lacks_is_refused() -> None:
    model = chain()
    plan = sf.plan(model, eighth(model), torch.randn(4, 8), backend="fused")
    model[1] = nn.SiLU()
    with pytest.raises(ValueError, match=r"plan has '0.weight' do the work of an nn.ReLU called '1'.* none.*--replan"):
        sf.sparsify(model, eighth(model), plan=plan)
    assert type(model[0]) is nn.Linear


def test_names_of_relus_are_those_of_the_unwrapped_model() -> None:
    model = chain()
    plan = sf.plan(model, eighth(model), torch.randn(4, 8), backend="fused")
    wrapped = nn.ModuleDict({"module": model})
    sf.sparsify(wrapped, eighth(model), plan=plan)
    assert type(model[1]) is PassedReLU


@pytest.mark.parametrize("shape", [(5, 4), (6, 2, 3, 3)])
def test_each_candidate_is_timed_as_it_would_run(
    shape: tuple[int, ...], fused: list[tuple[bool, bool, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "REPEATS", 1)
    gradients: list[tuple[bool, bool, bool]] = []
    image = None if len(shape) == 2 else (7, 5)
    geometry = Geometry() if image is None else Geometry("conv2d", (1, 1), (1, 1), (1, 1), 1)
    dense, op = get("dense"), type(get("fused").pack(torch.ones(shape, dtype=torch.bool), f"fused/1/{geometry}"))
    backward = op.backward_fused

    def spy(self: object, dy: Tensor, x: Tensor, y: Tensor | None, values: Tensor, dx: bool, dbias: bool) -> object:
        gradients.append((is_feature_major(dy), y is not None, dbias))
        return backward(self, dy, x, y, values, dx, dbias)

    monkeypatch.setattr(op, "backward_fused", spy)
    work = Workload(shape, geometry, 3, image, bias=True, relu=True, chained_in=True, chained_out=True)
    for now in (work, replace(work, bias=False, relu=False, chained_in=False, chained_out=False)):
        fused.clear()
        gradients.clear()
        costs = measuring.measure({"fused": get("fused"), "dense": dense}, now)
        assert set(fused) == {(now.relu, now.chained_in, now.chained_out)}
        assert set(gradients) == {(now.chained_out, now.relu, now.bias)}
        assert all(cost.seconds > 0 for cost in costs.values())


def test_a_plain_op_is_timed_with_relu_and_bias_gradient_beside_it() -> None:
    work = Workload((5, 4), rows=3, bias=True, relu=True)
    inputs = measuring._inputs(work, torch.Generator().manual_seed(0))
    op = Dense().pack(inputs.mask, "dense/1/linear")
    passes = measuring._plain_passes(op, work, inputs, op.pack_values(inputs.weight))
    y = passes["forward"]()
    assert isinstance(y, Tensor) and (y >= 0).all() and (y == 0).any()
    gradients, dbias = passes["backward"]()  # type: ignore[misc]
    assert torch.equal(dbias, (y > 0).sum(0).float())
    assert torch.equal(gradients[1], (y > 0).float().t() @ inputs.x)


def test_the_summary_of_mixed_plans() -> None:
    rows = [
        Row(name, (3, 4), 0.1, backend, f"{backend}/1/linear", "why")
        for name, backend in (("a", "cpu"), ("b", "dense"), ("c", "cpu"))
    ]
    assert str(Plan(tuple(rows), {})).splitlines()[-1] == "2 of 3 layers on cpu, 1 of 3 layers on dense"
    assert str(Plan((), {})).splitlines()[-1].startswith("layer")


def test_a_backend_may_add_a_word_to_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(get("fused")), "explain", lambda self, work: f"of {work.shape[0]} rows", raising=False)
    model = chain()
    named = sf.plan(model, eighth(model), torch.randn(4, 8), backend="fused")
    assert [row.reason for row in named.rows] == [f"named by the caller; of {rows} rows" for rows in (9, 7, 6)]
