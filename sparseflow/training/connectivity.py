"""Linear mode connectivity: what lies on the straight line between two trained networks.

Frankle et al., 2020 (arXiv:1912.05671), §2: two copies of a network are trained from θ_k with different data orders to
θ¹ and θ²; E(α) is the error of (1 − α) θ¹ + α θ². Where it hardly rises in between, k is late enough to rewind to.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.data import Split
from sparseflow.hardware.model import dense_state, load_dense_state
from sparseflow.hardware.plan import densify, sparsify
from sparseflow.masks.masks import Masks
from sparseflow.training.evaluation import Loss, evaluate
from sparseflow.training.order import Order
from sparseflow.training.round import masked
from sparseflow.training.seeds import derive
from sparseflow.training.trainer import Trainer

# An instability below it counts as stable: two points of error, as in the paper.
STABLE = 0.02
_BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Line:
    """Errors (fractions) and losses of one split at `alphas`, evenly spaced from 0 to 1, ends included."""

    alphas: tuple[float, ...]
    errors: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def instability(self) -> float:
        """The paper's: max E(α) − (E(0) + E(1)) / 2. Never negative, for the ends count."""
        return max(self.errors) - (self.errors[0] + self.errors[-1]) / 2

    @property
    def error_barrier(self) -> float:
        """The most by which the error rises above the straight line between its ends, of the points within."""
        return _above_chord(self.alphas, self.errors)

    @property
    def loss_barrier(self) -> float:
        """The same of the loss: at most 0 where the loss is convex."""
        return _above_chord(self.alphas, self.losses)


@dataclass(frozen=True)
class Barrier:
    """What lies between two networks, on the training and on the test split."""

    train: Line
    test: Line

    @property
    def instability(self) -> float:
        """The larger of the two splits'."""
        return max(self.train.instability, self.test.instability)

    def to_json(self) -> dict[str, Any]:
        """Plain data: instabilities and barriers; errors are fractions."""
        both = {"train": self.train, "test": self.test}
        return {
            name: {
                "instability": line.instability,
                "error_barrier": line.error_barrier,
                "loss_barrier": line.loss_barrier,
                "errors": line.errors,
            }
            for name, line in both.items()
        }


def barrier(
    trainer: Trainer,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    *,
    points: int = 11,
    examples: int = 10_000,
    norm_batches: int = 20,
) -> Barrier:
    """What lies between two dense states of the trainer's model, on its data.

    Parameters are interpolated, biases and BatchNorm's affine ones too. Running statistics are not: those of an
    interpolated network are neither's mean, so that they are estimated anew, from the first `norm_batches` batches of
    the trainer's order, at the ends as well as between. `examples`: so many of the training split are measured.
    `ValueError` for states of other names or shapes, or fewer than 3 points.
    """
    if points < 3:
        raise ValueError(f"barrier: expected at least 3 points, the ends and one between, got {points}")
    if {n: t.shape for n, t in first.items()} != {n: t.shape for n, t in second.items()}:
        raise ValueError("barrier: expected two states of the same network, got other names or shapes")
    model = densify(copy.deepcopy(trainer.model))
    alphas = tuple(number / (points - 1) for number in range(points))
    splits = {"train": _first(trainer.data.train, examples), "test": trainer.data.test}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in splits}
    for alpha in alphas:
        load_dense_state(model, interpolate(first, second, alpha))
        estimate_norms(model, [x for x, _ in trainer.batches(norm_batches)])
        for name, split in splits.items():
            found[name].append(_measure(model, split, trainer.loss, trainer.device))
    lines = {name: Line(alphas, *zip(*each)) for name, each in found.items()}
    return Barrier(**lines)


def interpolate(first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 − α) first + α second; equal tensors stay as they are, to the last bit, and integers are the first's."""
    return {
        name: one + alpha * (second[name].to(one) - one)
        if one.is_floating_point() and alpha < 1
        # Not by the formula: it rounds.
        else (second[name] if one.is_floating_point() else one).clone()
        for name, one in first.items()
    }


def estimate_norms(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Replaces the running statistics of BatchNorm by the mean over the inputs' batches; all else is in eval mode."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    device = next(model.parameters()).device
    with _averaging(model, norms), torch.no_grad():
        for x in inputs:
            model(x.to(device))


@dataclass(frozen=True)
class Stability:
    """Of a rewind step: the barrier between two networks that were trained from there by different data orders."""

    step: int
    barrier: Barrier

    @property
    def stable(self) -> bool:
        """Whether the error rises by less than two points, on both splits."""
        return self.barrier.instability < STABLE


def stability(
    trainer: Trainer,
    steps: Sequence[int],
    masks: Masks | None = None,
    *,
    points: int = 11,
    copies: tuple[int, int] = (1, 2),
) -> list[Stability]:
    """Trains the model, and from each of the steps two copies of it by other data orders; then looks between them.

    With `masks` all of them are sparse. `copies` are the numbers of the data orders: equal ones give a barrier of
    exactly 0. A copy begins with a fresh optimizer at step k, as a rewound network does; dropout draws the same in
    both. Costs 1 + 2 · len(steps) trainings, shorter for later steps. The trainer's model is not changed.
    """
    late = [step for step in steps if not 0 <= step < trainer.steps]
    if late or not steps:
        raise ValueError(f"stability: expected steps in [0, {trainer.steps}), got {list(steps)}")
    points_of_return = _states_at(trainer, sorted(set(steps)), masks)
    found = []
    for step, state in points_of_return.items():
        ends = [_train_from(trainer, state, step, masks, number) for number in copies]
        found.append(Stability(step, barrier(trainer, *ends, points=points)))
    return found


def suggested_step(found: Sequence[Stability]) -> int | None:
    """The earliest step from which on all were stable: where to rewind to; None where the last one was not."""
    suggestion = None
    for one in sorted(found, key=lambda each: each.step, reverse=True):
        if not one.stable:
            break
        suggestion = one.step
    return suggestion


def _states_at(trainer: Trainer, steps: Sequence[int], masks: Masks | None) -> dict[int, dict[str, Tensor]]:
    model = _network(trainer, dense_state(trainer.model), masks)
    states: dict[int, dict[str, Tensor]] = {}

    def keep(step: int) -> None:
        states[step] = dense_state(model)

    if steps == [0]:
        keep(0)
    else:
        _quiet(trainer).train(model, at_step={step: lambda step=step: keep(step) for step in steps})  # type: ignore[misc]
    return states


def _train_from(
    trainer: Trainer, state: Mapping[str, Tensor], step: int, masks: Masks | None, number: int
) -> dict[str, Tensor]:
    model = _network(trainer, state, masks)
    other = _quiet(trainer)
    other.order = Order(len(trainer.data.train), trainer.order.batch_size, derive(trainer.seed, "data", number))
    other.train(model, start=step)
    return dense_state(model)


def _quiet(trainer: Trainer) -> Trainer:
    """The same trainer, which evaluates at the end alone."""
    other = copy.copy(trainer)
    other.evaluate_every = trainer.steps
    return other


def _network(trainer: Trainer, state: Mapping[str, Tensor], masks: Masks | None) -> nn.Module:
    model = densify(copy.deepcopy(trainer.model))
    load_dense_state(model, state if masks is None else masked(state, masks))
    return model if masks is None else sparsify(model, masks, sample=trainer.sample())


def _measure(model: nn.Module, split: Split, loss: Loss, device: torch.device) -> tuple[float, float]:
    found = evaluate(model, split, loss=loss, device=device)
    return 1 - found.accuracy, found.loss


def _above_chord(alphas: Sequence[float], values: Sequence[float]) -> float:
    # Written so that equal values give exactly 0.
    first, last = values[0], values[-1]
    return max(value - (first + alpha * (last - first)) for alpha, value in zip(alphas[1:-1], values[1:-1]))


@dataclass(frozen=True)
class _First:
    """The first examples of a split."""

    split: Split
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.split))

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.split.batch(indices)


def _first(split: Split, count: int) -> Split:
    return _First(split, count)


@contextmanager
def _averaging(model: nn.Module, norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """BatchNorm in train mode, from nothing, with every batch counting the same; afterwards as it was set."""
    was_training, momenta = model.training, [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        model.train(was_training)
