"""The barrier between two networks: exactly zero, at most zero, large, and faked by stale BatchNorm statistics."""

import copy
from functools import partial

import pytest
import torch
from tiny_task import Net, blobs, tiny_trainer
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.hardware.model import dense_state
from sparseflow.training import connectivity
from sparseflow.training.connectivity import (
    Barrier,
    Line,
    Stability,
    barrier,
    estimate_norms,
    interpolate,
    stability,
    suggested_step,
)
from sparseflow.training.trainer import Trainer


def test_the_same_order_twice_has_no_barrier_at_all() -> None:
    (found,) = stability(tiny_trainer(), [2], copies=(1, 1))
    for line in (found.barrier.train, found.barrier.test):
        assert line.instability == 0.0 and line.error_barrier == 0.0 and line.loss_barrier == 0.0
        assert len(set(line.losses)) == 1
    assert found.stable


def test_other_orders_end_elsewhere() -> None:
    (found,) = stability(tiny_trainer(), [0])
    assert found.barrier.test.losses[0] != found.barrier.test.losses[-1]


def logistic() -> nn.Module:
    return nn.Linear(8, 3)


@pytest.mark.parametrize("seed", range(3))
def test_a_convex_loss_has_no_barrier(seed: int) -> None:
    trainer = tiny_trainer(logistic, seed=seed)
    (found,) = stability(trainer, [0])
    assert found.barrier.train.loss_barrier <= 0 and found.barrier.test.loss_barrier <= 0
    # Nor have two points that nobody has trained.
    states = [dense_state(trainer.build("other", number)) for number in range(2)]
    assert barrier(trainer, *states).train.loss_barrier <= 0


def deep() -> nn.Module:
    layers = [nn.Linear(8, 32)]
    for _ in range(3):
        layers += [nn.ReLU(), nn.Linear(32, 32)]  # type: ignore[list-item]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(32, 3))


def test_independent_networks_have_a_large_barrier() -> None:
    adam = partial(torch.optim.Adam, lr=3e-3)
    trainer = tiny_trainer(deep, steps=120, optimizer=adam, evaluate_every=120)
    ends = []
    for number in range(2):
        model = trainer.build("draw", number)
        trainer.train(model)
        ends.append(dense_state(model))
    assert barrier(trainer, *ends).train.error_barrier > 0.1


def test_stale_statistics_fake_a_barrier() -> None:
    trainer = tiny_trainer(steps=60, evaluate_every=60)
    trainer.train(trainer.model)
    state = dense_state(trainer.model)
    # The same function: BatchNorm undoes the scale of what comes in, if its statistics follow.
    scaled = {name: 9 * t if name.startswith("fc1") or name == "norm.running_mean" else t for name, t in state.items()}
    scaled["norm.running_var"] = 81 * state["norm.running_var"]
    honest = barrier(trainer, state, scaled)
    model = copy.deepcopy(trainer.model).eval()
    losses = []
    for alpha in (0.0, 0.5, 1.0):
        # The trap: statistics interpolated like weights.
        model.load_state_dict(interpolate(state, scaled, alpha))
        x, y = trainer.data.train.batch(torch.arange(60))
        losses.append(float(nn.functional.cross_entropy(model(x), y).detach()))
    ends = (losses[0] + losses[2]) / 2
    assert losses[1] - ends > 0.3 * ends and abs(honest.train.loss_barrier) < 1e-4 * ends


def test_statistics_are_the_mean_over_batches_and_settings_stay() -> None:
    torch.manual_seed(0)
    model = Net()
    inputs = [torch.randn(20, 8) + number for number in range(3)]
    estimate_norms(model, inputs)
    expected = torch.stack([model.fc1(x).mean(0) for x in inputs]).mean(0)
    assert isinstance(model.norm.running_mean, Tensor)
    torch.testing.assert_close(model.norm.running_mean, expected.detach())
    assert model.norm.momentum == 0.1 and model.training and model.norm.training


def test_interpolation_hits_both_ends_exactly() -> None:
    a, b = ({"w": torch.randn(50, generator=torch.Generator().manual_seed(s))} for s in (0, 1))
    assert torch.equal(interpolate(a, b, 0.0)["w"], a["w"]) and torch.equal(interpolate(a, b, 1.0)["w"], b["w"])
    assert torch.equal(interpolate(a, a, 0.3)["w"], a["w"])


def test_biases_and_batch_norm_are_interpolated_and_counts_are_not() -> None:
    a, b = (dense_state(tiny_trainer(seed=seed).model) for seed in (1, 2))
    b = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in b.items()}
    found = interpolate(a, b, 0.25)
    assert {"fc1.bias", "norm.weight", "norm.bias"} < set(found)
    for name, tensor in found.items():
        expected = 0.75 * a[name] + 0.25 * b[name] if tensor.is_floating_point() else a[name]
        torch.testing.assert_close(tensor, expected)
        assert tensor.is_floating_point() != torch.equal(tensor, a[name])


def test_pruned_weights_stay_pruned_between_two_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, ends = tiny_trainer(), list[dict[str, Tensor]]()

    def noted(trainer: Trainer, *states: dict[str, Tensor], points: int) -> Barrier:
        ends.extend(states)
        return barrier(trainer, *states, points=points)

    monkeypatch.setattr(connectivity, "barrier", noted)
    masks = sf.prune(trainer.model, 0.3)
    before = dense_state(trainer.model)
    (found,) = stability(trainer, [3], masks)
    assert found.step == 3
    # Both have the same mask, and so does all that lies between.
    for state in (*ends, interpolate(*ends, 0.5)):
        assert all(not state[name][~mask].any() and state[name][mask].any() for name, mask in masks.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense_state(trainer.model).items())


def line(*errors: float) -> Line:
    return Line((0.0, 0.5, 1.0), errors, errors)


def test_instability_is_the_papers_and_the_barrier_is_above_the_chord() -> None:
    assert line(0.10, 0.13, 0.12).instability == pytest.approx(0.02)
    assert line(0.10, 0.13, 0.12).error_barrier == pytest.approx(0.02)
    assert line(0.10, 0.10, 0.20).instability == pytest.approx(0.05)
    assert line(0.10, 0.10, 0.20).error_barrier == pytest.approx(-0.05)


def test_the_suggested_step_is_stable_from_there_on() -> None:
    def at(step: int, rise: float) -> Stability:
        return Stability(step, Barrier(line(0.1, 0.1, 0.1), line(0.1, 0.1 + rise, 0.1)))

    assert suggested_step([at(0, 0.3), at(100, 0.01), at(200, 0.03), at(300, 0.01), at(400, 0.0)]) == 300
    assert suggested_step([at(0, 0.01), at(100, 0.01)]) == 0
    assert suggested_step([at(0, 0.01), at(100, 0.02)]) is None


def test_wrong_arguments_are_refused() -> None:
    trainer = tiny_trainer(data=blobs())
    with pytest.raises(ValueError, match=r"stability: expected steps in \[0, 6\), got \[6\]"):
        stability(trainer, [6])
    state = dense_state(trainer.model)
    with pytest.raises(ValueError, match="barrier: expected at least 3 points"):
        barrier(trainer, state, state, points=2)
    with pytest.raises(ValueError, match="barrier: expected two states of the same network"):
        barrier(trainer, state, {})
