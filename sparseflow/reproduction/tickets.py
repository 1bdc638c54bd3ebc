"""Rows about winning tickets, on Fashion-MNIST: one iterative search a seed serves them all.

The protocol of Frankle & Carbin, 2019 (arXiv:1803.03635), §2, on another data set and with 8,000 steps a training in
place of 50,000: LeNet-300-100, Adam 1.2e-3, batches of 60, 20 % a round and 10 % of the output layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparseflow import data, models
from sparseflow.hardware.model import dense_state, load_dense_state
from sparseflow.hardware.plan import sparsify
from sparseflow.masks.masks import Masks
from sparseflow.reproduction.outcome import Outcome, points
from sparseflow.training.controls import Kind, train_control
from sparseflow.training.lottery import imp
from sparseflow.training.pruning import prune
from sparseflow.training.trainer import Trained, Trainer

STEPS = 8_000
ROUNDS = 13
# The round of rows 3 and 4, at 10.8 % of the weights; rows 5 and 6 look at the last one, at 5.6 %.
MIDDLE = 10
RATE, LAST_RATE = 0.2, 0.1

# Of one seed's search: arm → test accuracy at early stop, and the early-stop step.
Measured = Mapping[str, Mapping[str, float]]


def search(seed: int) -> Measured:
    """What rows 3 to 6 look at."""
    trainer = lenet_trainer(seed)
    theta_0 = dense_state(trainer.model)
    arms: dict[str, dict[str, float]] = {}
    controls: dict[int, Kind] = {MIDDLE: "reinit", ROUNDS: "shuffle"}
    at_once = Masks({})
    for ticket in imp(trainer, rounds=ROUNDS, **layerwise(1)):
        assert trainer.last is not None
        arms[f"ticket-{ticket.round}" if ticket.round else "dense"] = _arm(trainer.last)
        if ticket.round == 0:
            at_once = prune(trainer.model, **layerwise(ROUNDS))
        if ticket.round in controls:
            kind = controls[ticket.round]
            arms[f"{kind}-{ticket.round}"] = _arm(train_control(trainer, ticket, kind, theta_0))
    arms["one-shot"] = _arm(train_masked(trainer, at_once, theta_0))
    return arms


def ticket_against_dense(searches: Sequence[Measured]) -> Outcome:
    """Row 3: at 10.8 % the ticket is at least as good as the dense network."""
    gaps = [_gap(arms, "ticket-10", "dense") for arms in searches]
    return Outcome(_mean(gaps) >= 0.3 and min(gaps) >= -0.3, f"{points(gaps)} points")


def ticket_against_reinit(searches: Sequence[Measured]) -> Outcome:
    """Row 4: at 10.8 % the ticket beats its mask with fresh weights, and stops earlier in most seeds."""
    gaps = [_gap(arms, "ticket-10", "reinit-10") for arms in searches]
    earlier = sum(arms["ticket-10"]["step"] < arms["reinit-10"]["step"] for arms in searches)
    holds = _mean(gaps) >= 0.8 and min(gaps) > 0 and 3 * earlier >= 2 * len(searches)
    return Outcome(holds, f"{points(gaps)} points; earlier in {earlier} of {len(searches)}")


def ticket_against_shuffle(searches: Sequence[Measured]) -> Outcome:
    """Row 5: at 5.6 % the ticket beats its weights under the shuffled mask."""
    gaps = [_gap(arms, "ticket-13", "shuffle-13") for arms in searches]
    return Outcome(_mean(gaps) >= 1.2, f"{points(gaps)} points")


def iterative_against_one_shot(searches: Sequence[Measured]) -> Outcome:
    """Row 6: at 5.6 % thirteen prunings find a better ticket than one."""
    gaps = [_gap(arms, "ticket-13", "one-shot") for arms in searches]
    return Outcome(_mean(gaps) >= 0.5, f"{points(gaps)} points")


def lenet_trainer(seed: int, steps: int = STEPS, **changes: Any) -> Trainer:
    """LeNet-300-100 on Fashion-MNIST, as above."""
    optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, lr=1.2e-3, fused=True)
    arguments: dict[str, Any] = {"optimizer": optimizer, "batch_size": 60, "evaluate_every": min(200, steps)}
    return Trainer(models.lenet_300_100, data.fashion_mnist(), steps=steps, seed=seed, **{**arguments, **changes})


def train_masked(trainer: Trainer, masks: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Trained:
    """Trains a new network of the trainer's from a state, with masks."""
    model = trainer.build()
    load_dense_state(model, state)
    return trainer.train(sparsify(model, masks, sample=trainer.sample()))


def layerwise(rounds: int) -> dict[str, Any]:
    """What so many rounds of 20 %, of the output layer 10 %, prune, as arguments for one pruning."""
    return {
        "allocation": "layerwise",
        "rate": 1 - (1 - RATE) ** rounds,
        "rates": {"fc3.weight": 1 - (1 - LAST_RATE) ** rounds},
    }


def _arm(trained: Trained) -> dict[str, float]:
    return {"accuracy": trained.test.accuracy, "step": trained.early_stop_step}


def _gap(arms: Measured, one: str, other: str) -> float:
    """In points."""
    return 100 * (arms[one]["accuracy"] - arms[other]["accuracy"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
