"""What the ranks of a launch agree on while they train: when to stop, when to save, and that they hold the same."""

from __future__ import annotations

import hashlib
import json
import time
from typing import NamedTuple

import torch
from torch import nn

from sparseflow.hardware.model import sparse_layers
from sparseflow.masks.masks import Masks
from sparseflow.ranks import Ranks, RanksDifferError

# Seconds between two times that the ranks speak to each other: a signal is heard as late as that.
_EVERY = 0.25


class Said(NamedTuple):
    """What all ranks do at a step."""

    stop: bool
    save: bool


class Pulse:
    """Asked after each step; on many ranks they speak to each other at some of them alone, the same on all.

    One rank asked to stop stops all at the same step. Whether it is time to save is what rank 0's clock says.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        # Steps: the next at which they speak, and the last at which they did.
        self._next, self._last = 1, 0
        self._clock = time.monotonic()

    def due(self, done: int) -> bool:
        """Whether the ranks speak after step `done`. One process alone asks itself each time."""
        return self._ranks.world == 1 or done >= self._next

    def __call__(self, done: int, stop: bool, save: bool) -> Said:
        """By all ranks after the same step. `RanksDifferError` where they are at different ones."""
        if self._ranks.world == 1:
            return Said(stop, save)
        main = self._ranks.main
        said = torch.tensor([done, stop, save and main, self._gap(done) if main else 0])
        steps, stops, saves, gap = self._ranks.sum(said).tolist()
        if steps != done * self._ranks.world:
            raise RanksDifferError(f"the ranks are at different steps; this one, rank {self._ranks.rank}, at {done}")
        self._next, self._last = done + gap, done
        return Said(stops > 0, saves > 0)

    def _gap(self, done: int) -> int:
        now, steps = time.monotonic(), done - self._last
        passed, self._clock = now - self._clock, now
        # At most twice as many as were just timed: the first steps of a training are slow, and say little.
        return max(1, min(2 * steps, round(steps * _EVERY / max(passed, 1e-6))))


def check_structure(model: nn.Module, ranks: Ranks) -> None:
    """`RanksDifferError` unless the sparse layers have the same names, masks and layouts on every rank."""
    if ranks.world > 1:
        ranks.check_same("names, masks and layouts", _structure_digest(model))


def _structure_digest(model: nn.Module) -> str:
    layers = sparse_layers(model)
    masks = Masks({name: layer.mask for name, layer in layers.items()})
    layouts = {name: layer.op.layout for name, layer in layers.items()}
    return hashlib.sha256(json.dumps([masks.digest, layouts], sort_keys=True).encode()).hexdigest()
