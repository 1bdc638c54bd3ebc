"""Row 7: a network as small as LeNet is stable to data order from its initialisation on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparseflow.reproduction.outcome import Outcome
from sparseflow.reproduction.tickets import lenet_trainer
from sparseflow.training.connectivity import stability

STEPS = 4_000


def orders(seed: int) -> dict[str, float]:
    """Instability of two trainings by different data orders, on test and train, in points."""
    found = stability(lenet_trainer(seed, STEPS), [0])[0].barrier
    return {"test": 100 * found.test.instability, "train": 100 * found.train.instability}


def stable_at_init(found: Sequence[Mapping[str, float]]) -> Outcome:
    """Row 7b: two trainings by different data orders, and what lies between them."""
    shown = ", ".join(f"{one['test']:.2f}/{one['train']:.2f}" for one in found)
    return Outcome(all(max(one.values()) < 2 for one in found), f"test/train {shown} points")


def one_order(seed: int) -> float:
    """The largest barrier of the same order twice, on a hundred steps."""
    (found,) = stability(lenet_trainer(seed, 100), [50], copies=(1, 1), points=3)
    lines = (found.barrier.test, found.barrier.train)
    return max(max(line.instability, abs(line.loss_barrier)) for line in lines)


def same_order(worst: Sequence[float]) -> Outcome:
    """Row 7a, the oracle of 7b: no barrier at all."""
    return Outcome(max(worst) == 0.0, f"{max(worst):g}")
