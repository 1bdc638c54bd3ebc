"""What masks that change cost a training: the share of RigL's updates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from sparseflow.bench.clock import take_turns, threads
from sparseflow.bench.figure import Figure
from sparseflow.bench.networks import mlp
from sparseflow.data import Data, TensorSplit
from sparseflow.hardware.model import sparse_layers
from sparseflow.hardware.plan import sparsify
from sparseflow.masks.dynamic import RigL
from sparseflow.masks.masks import Masks
from sparseflow.models import resnet20
from sparseflow.training.pruning import Start
from sparseflow.training.trainer import Trainer

_DENSITY = 0.1
_EVERY = 100
_BATCH = 128
_LIMIT = 3.0
_REPEATS = 9


def algorithms(backend: str) -> list[Figure]:
    """RigL with updates every 100 steps at 90 % sparsity: how much of the time of a training the updates take."""
    wide = mlp("MLP 784-1024-1024-10 b128", (784, 1024, 1024, 10), _BATCH)
    return [
        updates(wide.name, wide.build, (784,), backend),
        updates("ResNet-20 28×28 b128", resnet20, (1, 28, 28), backend),
    ]


def updates(name: str, build: Callable[[], nn.Module], shape: tuple[int, ...], backend: str, count: int = 2) -> Figure:
    """Percent of the time: what a step with an update takes beyond one without, over 100 steps of which one has it.

    Updates drop as much as the first does, 30 % of each layer: later ones drop less.
    """
    title = f"RigL updates, {name}: share of the time"
    with threads(count):
        method = RigL(_DENSITY, until=1_000_000, every=_EVERY)
        trainer = _trainer(build, shape)
        start = Start(method)(trainer.model, Masks({}), 1)
        sparsify(trainer.model, start, backend=backend)
        step = trainer.stepper(trainer.model, method)
        step(_EVERY)
        found = Masks({name: layer.mask for name, layer in sparse_layers(trainer.model).items()})
        if found.kept != start.kept or found == start:
            return Figure(title, "%", _LIMIT, False, (), "an update moved no weight, or changed a layer's count")
        sides = take_turns({"update": lambda: step(_EVERY), "step": lambda: step(1)}, _REPEATS)
    shares = tuple(
        100 * max(0.0, update - plain) / (update + (_EVERY - 1) * plain)
        for update, plain in zip(sides["update"], sides["step"], strict=True)
    )
    return Figure(title, "%", _LIMIT, False, shares, seconds=sides)


def _trainer(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    split = TensorSplit(torch.randn(_BATCH, *shape, generator=generator), torch.arange(_BATCH) % 10)
    data = Data("random", "classification", split, split, split, classes=10, input_shape=shape)
    # A rate of nearly nothing: weights, and with them the time of a step, stay as they are.
    optimizer = partial(torch.optim.SGD, lr=1e-6, momentum=0.9)
    return Trainer(build, data, optimizer=optimizer, steps=1000, batch_size=_BATCH)
