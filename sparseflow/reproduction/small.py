"""A task that trains in milliseconds, for rows that are exact: what holds bit by bit holds at every size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.data import Data, TensorSplit
from sparseflow.training.trainer import Trainer


def network() -> nn.Module:
    """12 inputs, 24 hidden units behind a BatchNorm, 3 classes."""
    return nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))


def points() -> Data:
    """Noisy points around three centres."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(240) % 3
    inputs = torch.randn(3, 12, generator=generator)[targets] + torch.randn(240, 12, generator=generator)
    train, validation, test = (
        TensorSplit(inputs[part], targets[part]) for part in (slice(80, None), slice(0, 40), slice(40, 80))
    )
    return Data("points", "classification", train, validation, test, classes=3, input_shape=(12,))


def small_trainer(seed: int, optimizer: Callable[..., torch.optim.Optimizer], **changes: Any) -> Trainer:
    """Twelve steps of 20 examples."""
    arguments: dict[str, Any] = {"steps": 12, "batch_size": 20, "evaluate_every": 6}
    return Trainer(network, points(), optimizer=optimizer, seed=seed, **{**arguments, **changes})


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states hold the same bytes."""
    return a.keys() == b.keys() and all(
        torch.equal(one.contiguous().view(-1).view(torch.uint8), b[name].contiguous().view(-1).view(torch.uint8))
        for name, one in a.items()
    )
