"""A search of ten rounds with a quarter of the steps, for rows that compare tickets with each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparseflow.hardware.model import dense_state
from sparseflow.masks.masks import Masks
from sparseflow.reproduction.tickets import lenet_trainer
from sparseflow.training.lottery import imp

STEPS = 2_000
ROUNDS = 10


@dataclass(frozen=True)
class Found:
    """The last round's ticket: its masks, the weights before and after training, and its test accuracy in points."""

    masks: Masks
    start: Mapping[str, Tensor]
    trained: Mapping[str, Tensor]
    accuracy: float


def short_search(seed: int, **pruning: Any) -> Found:
    """`pruning`: arguments of `imp`."""
    trainer = lenet_trainer(seed, STEPS)
    theta_0 = dense_state(trainer.model)
    *_, ticket = imp(trainer, rounds=ROUNDS, **pruning)
    assert trainer.last is not None
    return Found(ticket.masks, theta_0, dense_state(trainer.model), 100 * trainer.last.test.accuracy)
