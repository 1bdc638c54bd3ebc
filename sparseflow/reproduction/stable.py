"""Row 7: a network as small as LeNet is stable to data order from its initialisation on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparseflow.reproduction.outcome import Outcome
from sparseflow.reproduction.tickets import lenet_trainer
from sparseflow.training.connectivity import stability

STEPS = 4_000


def stable_at_init(seeds: Sequence[int], folder: Path) -> Outcome:
    """Row 7: two trainings by different data orders, and what lies between them."""
    found = [stability(lenet_trainer(seed, STEPS), [0])[0].barrier for seed in seeds]
    shown = ", ".join(f"{100 * one.test.instability:.2f}/{100 * one.train.instability:.2f}" for one in found)
    return Outcome(all(one.instability < 0.02 for one in found), f"test/train {shown} points")


def same_order(seeds: Sequence[int], folder: Path) -> Outcome:
    """Row 7, its oracle: the same order twice, on a hundred steps."""
    lines = [
        line
        for seed in seeds
        for one in stability(lenet_trainer(seed, 100), [50], copies=(1, 1), points=3)
        for line in (one.barrier.test, one.barrier.train)
    ]
    worst = max(max(line.instability, abs(line.loss_barrier)) for line in lines)
    return Outcome(worst == 0.0, f"{worst:g}")
