"""Masks that change in training: pruned weights stay zero, nothing dense stays, and what was stopped goes on."""

import copy
import gc
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from leavings import left_in
from threaded import together
from tiny_task import SGD, tiny_trainer

import sparseflow as sf
from sparseflow.files import Ticket
from sparseflow.hardware.dense_gradient import DenseGradient
from sparseflow.hardware.model import sparse_layers
from sparseflow.hardware.plan import Plan
from sparseflow.masks.dynamic import SET, Dynamic, RigL
from sparseflow.masks.phases import ACDC, GMP, SPDF, Static
from sparseflow.ranks import ALONE, Ranks
from sparseflow.training.lottery import train_dynamic
from sparseflow.training.masking import Masking
from sparseflow.training.pruning import Start
from sparseflow.training.records import Records
from sparseflow.training.steps import Training
from sparseflow.training.trainer import Stopped, Trainer

METHODS = [RigL(0.4, until=6, every=2), SET(0.4, until=6, every=2)]
PHASES = [GMP(0.4, until=5, every=2), ACDC(0.4, 1, 2, 5), SPDF(0.4, 3), Static(0.4)]
ADAM = partial(torch.optim.Adam, lr=0.01, fused=True)


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def train(folder: Path | None, method: Dynamic, trainer: Trainer | None = None, **changes: Any) -> list[Ticket]:
    arguments: dict[str, Any] = {"backend": "dense-compact", **changes}
    return list(train_dynamic(trainer or tiny_trainer(), method, records=Records(folder), **arguments))


def sparse_trainer(method: Dynamic, backend: str = "dense-compact", **changes: Any) -> Trainer:
    trainer = tiny_trainer(**changes)
    masks = Start(method, None, 1)(trainer.model, sf.Masks({}), 1)
    sf.sparsify(trainer.model, masks, backend=backend)
    return trainer


# Either optimizer where masks replace weights; the other methods with the one that keeps more.
@pytest.mark.parametrize(
    ("method", "optimizer"), [*((m, o) for m in METHODS for o in (SGD, ADAM)), *((m, ADAM) for m in PHASES)]
)
def test_stopped_at_every_step(tmp_path: Path, method: Dynamic, optimizer: Any) -> None:
    whole = train(tmp_path / "whole", method, tiny_trainer(optimizer=optimizer))
    stops = 0
    while True:
        trainer = tiny_trainer(optimizer=optimizer)
        trainer.should_stop = lambda: True
        try:
            parts = train(tmp_path / "parts", method, trainer)
            break
        except Stopped:
            stops += 1
    assert stops == 11
    assert [ticket.digest for ticket in parts] == [ticket.digest for ticket in whole]
    assert left_in(tmp_path / "parts") == left_in(tmp_path / "whole")


@pytest.mark.parametrize("method", METHODS)
def test_every_backend_finds_the_same_masks(method: Dynamic) -> None:
    found = {name: train(None, method, backend=name)[1].masks.digest for name in ("dense", "dense-compact", "cpu")}
    assert len(set(found.values())) == 1
    begun = Start(method, None, 0)(tiny_trainer().model, sf.Masks({}), 1)
    assert found["cpu"] != begun.digest


@pytest.mark.parametrize("method", METHODS + PHASES)
def test_pruned_weights_and_their_optimizer_state_are_zero_after_each_step(method: Dynamic) -> None:
    trainer = sparse_trainer(method, "dense", optimizer=partial(SGD, weight_decay=0.1))
    digests, step = set(), trainer.stepper(trainer.model, method)
    for number in range(6):
        step(number)
        for layer in sparse_layers(trainer.model).values():
            assert not layer.weight[~layer.mask].any()
            assert not layer.values[~layer.mask].any()
        digests.add(sf.Masks({name: layer.mask for name, layer in sparse_layers(trainer.model).items()}).digest)
    assert len(digests) == {RigL: 3, SET: 3, GMP: 4, ACDC: 3, SPDF: 2, Static: 1}[type(method)]


def test_micro_batches_add_up_to_the_gradient_of_the_whole() -> None:
    # Without BatchNorm's sight of the batch or dropout, cutting it changes nothing but the order of sums.
    def net() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))

    digests = {train(None, METHODS[0], tiny_trainer(net, accumulate=parts))[1].masks.digest for parts in (1, 2, 4)}
    assert len(digests) == 1


def test_dense_gradients_are_there_in_update_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, added = sparse_trainer(METHODS[0]), list[int]()
    add, now = DenseGradient.add, [0]

    def counted(self: DenseGradient, dy: torch.Tensor, x: torch.Tensor) -> None:
        added.append(now[0])
        add(self, dy, x)

    monkeypatch.setattr(DenseGradient, "add", counted)
    step = trainer.stepper(trainer.model, METHODS[0])
    for now[0] in range(6):
        step(now[0])
        assert all(layer.dense_gradient is None for layer in sparse_layers(trainer.model).values())
    assert added == [2, 2, 4, 4]


@pytest.mark.parametrize("method", [*METHODS, PHASES[0]])
def test_nothing_as_large_as_a_dense_weight_stays_after_a_step(method: Dynamic) -> None:
    trainer = sparse_trainer(method, "cpu")
    step = trainer.stepper(trainer.model, method)
    # The masks change in step 2.
    for number in range(4):
        step(number)
    assert alive(16 * 8, 3 * 16) == []
    kept = torch.zeros(16, 8)
    assert alive(16 * 8) == [kept.shape]


def alive(*numbers: int) -> list[torch.Size]:
    """The shapes of all tensors of that many numbers that anybody holds."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return [one.shape for one in tensors if one.numel() in numbers]


def test_an_overflowed_gradient_changes_no_mask() -> None:
    trainer = sparse_trainer(METHODS[0])
    before = {name: layer.mask for name, layer in sparse_layers(trainer.model).items()}
    trainer.loss = lambda y, target: (y * torch.inf).sum()
    trainer.stepper(trainer.model, METHODS[0])(2)
    assert all(torch.equal(layer.mask, before[name]) for name, layer in sparse_layers(trainer.model).items())


def test_outputs_are_the_same_bits_when_a_sparse_model_becomes_dense() -> None:
    # What SPDF does at the step between its two halves.
    trainer = sparse_trainer(PHASES[2], backend="dense")
    trainer.stepper(trainer.model)(0)
    model, x = trainer.model.eval(), trainer.sample()
    before = model(x)
    sf.remask(model, {name: torch.ones_like(layer.mask) for name, layer in sparse_layers(model).items()})
    assert torch.equal(model(x), before)


def test_early_stop_waits_for_the_last_density() -> None:
    method = GMP(0.4, until=4, every=1)
    trainer = sparse_trainer(method, evaluate_every=1)
    # The best network is the first one, unless one has to wait.
    trainer.schedule = lambda step: 0.0
    assert trainer.train(trainer.model, dynamic=method).early_stop_step >= 5


def test_backends_are_chosen_for_the_density_that_it_ends_with() -> None:
    for method, density in ((GMP(0.4, until=5, every=2), 0.4), (ACDC(0.4, 1, 2, 5), 0.4), (SPDF(0.4, 3), 0.4)):
        ticket = train(None, method)[1]
        assert ticket.plan is not None
        rows = Plan.from_json(ticket.plan).rows
        kept = sum(row.density * math.prod(row.shape) for row in rows)
        assert kept / sum(math.prod(row.shape) for row in rows) == pytest.approx(density, abs=1 / 100)


def momentum(training: Training) -> dict[str, torch.Tensor]:
    """The optimizer's momentum by dense name, zeros where pruned."""
    state = training.engine.optimizer_state()
    return {name: state[f"{name}/momentum_buffer"] for name in sparse_layers(training.model)}


@pytest.mark.parametrize("backend", ["dense", "dense-compact", "cpu"])
# AC/DC decompresses at the step that is looked at.
@pytest.mark.parametrize("method", [*METHODS, PHASES[1]])
def test_momentum_is_zero_at_new_connections_and_stays_at_old_ones(method: Dynamic, backend: str) -> None:
    trainer = sparse_trainer(method, backend)
    training = Training(trainer, trainer.model, 0, trainer.schedule, None, method)
    found, before = [], dict[str, torch.Tensor]()
    for number in range(3):
        before = {name: layer.mask for name, layer in sparse_layers(trainer.model).items()}
        found.append(momentum(training) if number else {})
        training.step(number)
    after, grown = momentum(training), 0
    for name, layer in sparse_layers(trainer.model).items():
        new, old = layer.mask & ~before[name], layer.mask & before[name]
        grown += int(new.sum())
        assert not after[name][new].any() and not layer.weight[new].any()
        assert after[name][old].any()
        if method.replaces_step:
            # Not even decayed: the update stands in the place of the step.
            assert torch.equal(after[name][old], found[2][name][old])
    assert grown


def test_updates_count_steps_from_the_beginning_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    # The trap: a cosine over the steps since the start of this training would drop too much.
    steps, update = list[int](), RigL.update

    def seen(self: RigL, step: int, *others: Any) -> sf.Masks:
        steps.append(step)
        return update(self, step, *others)

    monkeypatch.setattr(RigL, "update", seen)
    trainer = sparse_trainer(METHODS[0])
    trainer.train(trainer.model, start=3, dynamic=METHODS[0])
    assert steps == [4]


def scaled(scale: float) -> tuple[Training, torch.amp.GradScaler]:
    """A training whose losses are scaled, as fp16 has it."""
    trainer = sparse_trainer(METHODS[0])
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.accelerator.scaler = scaler
    return Training(trainer, trainer.model, 0, trainer.schedule, None, METHODS[0]), scaler


def masks_of(training: Training) -> str:
    return sf.Masks({name: layer.mask for name, layer in sparse_layers(training.model).items()}).digest


def test_a_loss_scale_changes_no_mask() -> None:
    trainer = sparse_trainer(METHODS[0])
    plain = Training(trainer, trainer.model, 0, trainer.schedule, None, METHODS[0])
    with_scale, _ = scaled(1024.0)
    for number in range(5):
        plain.step(number)
        with_scale.step(number)
        assert masks_of(with_scale) == masks_of(plain)
    assert torch.equal(with_scale.model.fc1.values, plain.model.fc1.values)  # type: ignore[union-attr, arg-type]


def test_a_scale_that_is_too_high_is_lowered_and_the_update_left_out() -> None:
    training, scaler = scaled(2.0**127)
    # So large a loss that every layer overflows, not one pruned weight alone.
    training.trainer.loss = lambda y, target: 64 * y.logsumexp(-1).sum()
    before, values = masks_of(training), training.model.fc1.values.detach().clone()  # type: ignore[union-attr, operator]
    training.step(2)
    assert masks_of(training) == before
    assert torch.equal(training.model.fc1.values, values)  # type: ignore[union-attr, arg-type]
    assert scaler.get_scale() == 2.0**126


@pytest.mark.parametrize("method", METHODS)
def test_ranks_with_different_data_find_the_same_masks(method: Dynamic) -> None:
    trainer = sparse_trainer(method)
    x, y = trainer.data.train.batch(torch.arange(40))

    def updated(ranks: Ranks, part: slice) -> str:
        model = copy.deepcopy(trainer.model).eval()
        masking = Masking(method, 1, ranks)
        with masking.gradients(2, model) as found:
            torch.nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        masks = masking.update(2, model, found)
        assert masks is not None
        return masks.digest

    halves = (slice(0, 20), slice(20, 40))
    first, second = together(2, lambda ranks: updated(ranks, halves[ranks.rank]))
    assert first == second == updated(ALONE, slice(0, 40))
    if method.uses_gradients:
        # The trap: each rank by the gradient of its own data.
        assert updated(ALONE, halves[0]) != updated(ALONE, halves[1])


def test_masks_that_would_never_be_done() -> None:
    trainer = sparse_trainer(PHASES[1])
    message = "ACDC: its masks have their last density after 9 steps, and the training has 6"
    with pytest.raises(ValueError, match=message):
        trainer.train(trainer.model, dynamic=ACDC(0.4, 1, 1, 9))
