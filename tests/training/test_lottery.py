"""The search against what the papers say: Frankle & Carbin, 2019; Frankle et al., 2020; Renda et al., 2020."""

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import SGD, Net, blobs, differing, snapshot, tiny_trainer
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.data import Split
from sparseflow.hardware.model import dense_state
from sparseflow.masks.masks import Masks
from sparseflow.models import lenet_300_100
from sparseflow.training import round_plan
from sparseflow.training.evaluation import cross_entropy
from sparseflow.training.pruning import Pruning
from sparseflow.training.records import Records
from sparseflow.training.trainer import Trainer

PLAIN: dict[str, Any] = {"rate": 0.5, "backend": "dense-compact", "floor": 1}


class Watched:
    """A split that notes which examples each batch had."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.batches: list[str] = []

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(hashlib.sha256(indices.numpy().tobytes()).hexdigest())
        return self.split.batch(indices)


def starts_and_ends(trainer: Trainer, **arguments: Any) -> Iterator[tuple[sf.Ticket, dict[str, Tensor]]]:
    """Each round's ticket, and the weights that its training ended with."""
    for ticket in sf.imp(trainer, **{**PLAIN, **arguments}):
        yield ticket, dense_state(trainer.model)


def masked(state: dict[str, Tensor], masks: sf.Masks) -> dict[str, Tensor]:
    return {name: torch.where(masks[name], t, 0.0) if name in masks else t for name, t in state.items()}


def test_lenet_keeps_the_counts_of_the_paper() -> None:
    trainer = tiny_trainer(lenet_300_100, data=blobs(20, 784), steps=1)
    arguments: dict[str, Any] = {"rate": 0.2, "allocation": "layerwise", "rates": {"fc3.weight": 0.1}}
    tickets = list(sf.imp(trainer, rounds=15, backend="dense-compact", **arguments))
    kept = [ticket.masks.kept for ticket in tickets]
    assert kept[0] == {"fc1.weight": 235_200, "fc2.weight": 30_000, "fc3.weight": 1_000}
    assert kept[7] == {"fc1.weight": 49_325, "fc2.weight": 6_291, "fc3.weight": 478}
    percent = {index: round(tickets[index].density * 100, 3) for index in (1, 3, 7, 9, 15)}
    assert percent == {1: 80.038, 3: 51.281, 7: 21.072, 9: 13.517, 15: 3.583}
    for before, after in pairwise(tickets):
        assert all(bool((before.masks[name] | ~mask).all()) for name, mask in after.masks.items())


def test_the_algorithm_is_the_one_written_out_by_hand() -> None:
    trainer = tiny_trainer()
    theta_0 = snapshot(trainer.model)
    kept = {name: torch.ones_like(theta_0[name], dtype=torch.bool) for name in ("fc1.weight", "fc2.weight")}
    for ticket, theta_T in starts_and_ends(trainer, rounds=3):
        for name, mask in kept.items():
            assert torch.equal(ticket.masks[name], mask)
            assert not theta_T[name][~mask].any()
        assert differing(ticket.rewind, masked(theta_0, ticket.masks)) == []
        kept = half_of_the_largest(theta_T, kept)


def half_of_the_largest(weights: dict[str, Tensor], kept: dict[str, Tensor]) -> dict[str, Tensor]:
    alive = torch.cat([weights[name][mask].abs() for name, mask in kept.items()])
    # Python's round is half to even, as the prunings are counted.
    threshold = alive.sort().values[round(0.5 * len(alive))]
    return {name: mask & (weights[name].abs() >= threshold) for name, mask in kept.items()}


def test_a_round_that_prunes_nothing_is_plain_training() -> None:
    trainer = tiny_trainer()
    first, second = (state for _, state in starts_and_ends(trainer, rounds=1, rate=0.0, backend="dense"))
    plain = tiny_trainer()
    plain.train(plain.model)
    assert differing(first, dense_state(plain.model)) == []
    assert differing(second, first) == []


def test_rewinding_to_step_0_is_marking_the_initial_weights() -> None:
    from_imp = [ticket.digest for ticket, _ in starts_and_ends(tiny_trainer(), rounds=2, rewind_to=0)]
    trainer = tiny_trainer()
    by_hand = []
    for round in sf.rounds(trainer.model, rounds=2, rate=0.5, backend="dense-compact", floor=1):
        if round.index == 0:
            round.mark_rewind_point()
        trainer.train(round.model)
        round.finish()
        by_hand.append(round.ticket().digest)
    assert by_hand == from_imp


def test_rewinding_restores_weights_and_batchnorm_of_step_k() -> None:
    reference = tiny_trainer()
    theta_2: dict[str, Tensor] = {}
    reference.train(reference.model, at_step={2: lambda: theta_2.update(snapshot(reference.model))})
    assert int(theta_2["norm.num_batches_tracked"]) == 2
    for ticket, theta_T in starts_and_ends(tiny_trainer(), rounds=2, rewind_to=2):
        assert differing(ticket.rewind, masked(theta_2, ticket.masks)) == []
        assert int(theta_T["norm.num_batches_tracked"]) == 6


def test_steps_after_a_rewind_see_the_examples_they_saw_before_it() -> None:
    data = blobs()
    train = Watched(data.train)
    object.__setattr__(data, "train", train)
    trainer = tiny_trainer(data=data)
    seen = []
    for _ in starts_and_ends(trainer, rounds=2, rewind_to=2):
        seen.append(train.batches)
        train.batches = []
    # The first batch of all is the sample.
    assert len(seen[0][1:]) == 6 and len(set(seen[0][1:])) == 6
    assert seen[1] == seen[2] == seen[0][1:][2:]


def test_noise_and_optimizer_start_afresh_after_a_rewind() -> None:
    # Nothing is pruned, so from step 2 on round 1 must do what plain training does from that state.
    trainer = tiny_trainer()
    rounds = list(starts_and_ends(trainer, rounds=1, rate=0.0, backend="dense", rewind_to=2))
    plain = tiny_trainer()
    plain.model.load_state_dict(rounds[1][0].rewind)
    plain.train(plain.model, start=2)
    assert differing(rounds[1][1], dense_state(plain.model)) == []
    # Momentum that had been carried over would have led elsewhere.
    assert "fc1.weight" not in differing(rounds[1][1], dense_state(plain.model))
    assert "fc1.weight" in differing(rounds[0][1], rounds[1][1])


@pytest.mark.parametrize("rewind", ["learning_rate", "none"])
def test_other_rewinds_keep_the_trained_weights(rewind: str) -> None:
    previous: dict[str, Tensor] = {}
    for ticket, theta_T in starts_and_ends(tiny_trainer(), rounds=2, rewind=rewind, rewind_to=2):
        if previous:
            assert differing(ticket.rewind, masked(previous, ticket.masks)) == []
            assert ticket.provenance["metrics"]["steps"] == 4  # type: ignore[index]
        previous = theta_T


@pytest.mark.parametrize(
    ("rewind", "factors"),
    [("weights", [2, 3, 4, 5]), ("learning_rate", [2, 3, 4, 5]), ("none", [5, 5, 5, 5])],
)
def test_learning_rates_of_a_later_round(rewind: str, factors: list[int]) -> None:
    rates: list[float] = []

    def noted(parameters: Any) -> torch.optim.Optimizer:
        optimizer = SGD(parameters)
        optimizer.register_step_pre_hook(lambda opt, args, kwargs: rates.append(opt.param_groups[0]["lr"]))
        return optimizer

    trainer = tiny_trainer(optimizer=noted, schedule=lambda step: 1 / (1 + step))
    list(starts_and_ends(trainer, rounds=1, rewind=rewind, rewind_to=2))
    assert rates[:6] == [0.1 * (1 / (1 + step)) for step in range(6)]
    assert rates[6:] == [0.1 * (1 / (1 + step)) for step in factors]


def test_learning_rate_rewinding_to_0_that_prunes_nothing_is_training_twice() -> None:
    rates = {"schedule": lambda step: 1 / (1 + step)}
    trainer = tiny_trainer(**rates)
    *_, (_, twice) = starts_and_ends(trainer, rounds=1, rate=0.0, backend="dense", rewind="learning_rate", rewind_to=0)
    plain = tiny_trainer(**rates)
    for _ in range(2):
        plain.train(plain.model)
    assert differing(twice, dense_state(plain.model)) == []


def test_one_shot_is_a_search_of_one_round() -> None:
    trainer = tiny_trainer()
    (_, theta_T), (ticket, _) = starts_and_ends(trainer, rounds=1, rate=0.9)
    model = Net()
    model.load_state_dict(theta_T)
    assert sf.prune(model, rate=0.9, floor=1).digest == ticket.masks.digest


@pytest.mark.parametrize("schedule", ["constant", "cubic"])
def test_density_is_reached_in_the_last_round(schedule: str) -> None:
    tickets = [t for t, _ in starts_and_ends(tiny_trainer(), rounds=3, rate=None, density=0.1, schedule=schedule)]
    densities = [ticket.density for ticket in tickets]
    assert densities == sorted(densities, reverse=True) and densities[0] == 1.0 and densities[1] < 1.0
    assert tickets[3].masks.nnz == round(0.1 * 176)


def test_no_round_at_all_is_dense_training() -> None:
    (only,) = starts_and_ends(tiny_trainer(), rounds=0)
    assert only[0].density == 1.0 and only[0].round == 0


def test_ones_own_loop() -> None:
    data = blobs()
    x, y = data.train.batch(torch.arange(60))
    model: nn.Module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    tickets = []
    for round in sf.rounds(model, rounds=2, rate=0.5, floor=1):
        optimizer = torch.optim.Adam(round.model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(round.model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        round.finish({"step": round.index})
        tickets.append(round.ticket({"who": "me"}))
    assert [ticket.masks.nnz for ticket in tickets] == [176, 88, 44]
    assert tickets[2].provenance == {"algorithm": "imp", "round": 2, "metrics": {"step": 2}, "who": "me"}
    assert sum(p.numel() for p in sf.densify(model).parameters()) == 8 * 16 + 16 + 16 * 3 + 3


def test_a_round_that_was_not_finished_is_an_error() -> None:
    rounds = sf.rounds(Net(), rounds=1, rate=0.5)
    next(rounds)
    with pytest.raises(RuntimeError, match=r"round 0 was not finished: call round.finish\(\)"):
        next(rounds)


def test_the_rewind_point_belongs_to_round_0() -> None:
    rounds = sf.rounds(Net(), rounds=1, rate=0.5)
    next(rounds).finish()
    with pytest.raises(ValueError, match="the rewind point belongs to round 0, this is round 1"):
        next(rounds).mark_rewind_point()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": -1}, "rounds: expected 0 prunings or more, got -1"),
        ({"rate": None}, "give rate .* or density"),
        ({"density": 0.5}, "not both"),
        ({"rate": None, "density": 1.5}, "1.5"),
        ({"rate": None, "density": 0.0}, "0.0"),
        ({"schedule": "cubic"}, "schedule='cubic' needs density"),
        ({"rewind_to": 6}, r"rewind_to: expected a step in \[0, 6\), got 6"),
        ({"rewind": "weight"}, "expected one of weights, learning_rate, none, got 'weight'"),
        ({"criterion": "magnitud"}, "did you mean 'magnitude'"),
        ({"param_filter": "conv*"}, "matches no prunable weight; they are: fc1.weight, fc2.weight"),
        ({"allocation": "layerwise", "rates": {"fc9*": 0.1}}, "fc9"),
        ({"backend": "tritn"}, "no backend 'tritn'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_trained(arguments: dict[str, Any], message: str) -> None:
    steps: list[int] = []
    trainer = tiny_trainer(listener=lambda event: steps.append(event["step"]))
    with pytest.raises(ValueError, match=message):
        list(sf.imp(trainer, **{"rounds": 1, "rate": 0.5, **arguments}))
    assert steps == []


def test_prunings_are_counted_from_1() -> None:
    pruning = Pruning(rounds=4, density=0.25, floor=1)
    model = Net()
    masks = sf.Masks.ones({"fc1.weight": (16, 8), "fc2.weight": (3, 16)})
    assert pruning(model, masks, 4).nnz == 44
    assert pruning(model, masks, 2).nnz == 88


class Shared(nn.Module):
    """One layer twice, and one more that is tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.again = self.a
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.a.weight
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.tied(self.again(self.a(x).relu()).relu()).relu())
        return y


@pytest.mark.parametrize("backend", ["dense", "dense-compact"])
def test_shared_and_tied_weights_are_masked_under_all_their_names(backend: str) -> None:
    trainer = tiny_trainer(Shared)
    dense, ticket = sf.imp(trainer, rounds=1, rate=0.5, floor=1, backend=backend)
    control = sf.train_control(trainer, ticket, "reinit", dense.rewind)
    assert control.steps == 6
    mask = ticket.masks["a.weight"]
    for name in ("a.weight", "again.weight", "tied.weight"):
        assert torch.equal(ticket.rewind[name], torch.where(mask, dense.rewind["a.weight"], 0.0))


def test_a_search_needs_a_dense_model() -> None:
    trainer = tiny_trainer()
    list(sf.imp(trainer, rounds=1, rate=0.5, floor=1, backend="dense"))
    with pytest.raises(ValueError, match="expected a dense model"):
        next(iter(sf.imp(trainer, rounds=1, rate=0.5, floor=1, backend="dense")))


def test_plans_are_made_under_the_autocast_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, seen, plan = tiny_trainer(), list[bool](), round_plan.plan

    def noted(*arguments: Any, crossovers: bool) -> sf.Plan:
        seen.append(torch.is_autocast_enabled("cpu"))
        return plan(*arguments, crossovers=crossovers)

    monkeypatch.setattr(trainer.accelerator, "autocast", lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    monkeypatch.setattr(round_plan, "plan", noted)
    list(sf.imp(trainer, rounds=1, rate=0.5, floor=1, backend="dense"))
    assert seen == [True]


def test_masks_that_were_made_elsewhere_begin_the_next_round(tmp_path: Path) -> None:
    records = Records(tmp_path)
    search = sf.imp(tiny_trainer(), rounds=2, records=records, **PLAIN)
    dense = next(search)
    made = Masks({name: torch.arange(mask.numel()).view(mask.shape) % 3 != 0 for name, mask in dense.masks.items()})
    records.keep_masks(1, made)
    assert next(search).masks == made
    assert next(search).masks.issubset(made)


def test_masks_of_an_earlier_training_are_forgotten(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.keep_masks(1, Masks({"fc1.weight": torch.ones(16, 8, dtype=torch.bool)}))
    next(sf.imp(tiny_trainer(), rounds=1, records=records, **PLAIN))
    assert records.masks(1) is None
