"""Weights that are used where they lie: whole parameters of a store in memory, where the model computes there too."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sparseflow.hardware.streaming.channel import Channel
from sparseflow.hardware.streaming.store import Store
from sparseflow.hardware.streaming.units import Unit, Weight


class Lying:
    """Which they are, from `look` to `look`: a change of masks changes it."""

    def __init__(self, store: Store, channel: Channel, units: Iterable[Unit], device: torch.device) -> None:
        self._store, self._channel, self._device = store, channel, device
        self._units = list(units)
        self._names: set[str] = set()
        # Where a parameter's memory begins → a unit that has it, its name, and that memory.
        self._at: dict[int, tuple[str, str, Tensor]] = {}
        self.look()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def look(self) -> None:
        """Finds out anew."""
        self._names, self._at = set(), {}
        for unit in self._units if self._device.type == "cpu" else ():
            for name in (weight.name for weight in unit.weights.values()):
                if self._channel.lends(name):
                    memory = self._store.parameter(name).memory()
                    self._names.add(name)
                    self._at[memory.data_ptr()] = unit.name, name, memory

    def weight(self, weight: Weight) -> Tensor:
        """One of them: a view, only to be read."""
        return self._store.values(weight.name).view(weight.shape)

    def at(self, address: int) -> tuple[str, str, Tensor] | None:
        """A unit, its parameter whose memory begins there, and that memory, as numbers; None where none does."""
        return self._at.get(address)
