"""Weights that are used where they lie: whole parameters of a store in memory, where the model computes there too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow.hardware.streaming.channel import Channel
from sparseflow.hardware.streaming.store import Store
from sparseflow.hardware.streaming.units import Unit, Weight


@dataclass(frozen=True)
class Place:
    """A parameter, one of the units that have it, and all of its memory, as numbers."""

    unit: str
    name: str
    memory: Tensor


class Lying:
    """Which they are. They are looked for when somebody asks, and after `forget` anew: new masks change them."""

    def __init__(self, store: Store, channel: Channel, units: Iterable[Unit], device: torch.device) -> None:
        self._store, self._channel, self._device = store, channel, device
        self._units = list(units)
        self._known: tuple[set[str], dict[int, Place]] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._found()[0]

    def forget(self) -> None:
        """Says that they may be others now."""
        self._known = None

    def weight(self, weight: Weight) -> Tensor:
        """One of them: a view, only to be read."""
        return self._store.values(weight.name).view(weight.shape)

    def at(self, address: int) -> Place | None:
        """Whose memory begins there, if it is one of them."""
        return self._found()[1].get(address)

    def _found(self) -> tuple[set[str], dict[int, Place]]:
        if self._known is None:
            places = {}
            for unit in self._units if self._device.type == "cpu" else ():
                for name in (weight.name for weight in unit.weights.values()):
                    if self._channel.lends(name):
                        memory = self._store.parameter(name).memory()
                        places[memory.data_ptr()] = Place(unit.name, name, memory)
            self._known = {place.name for place in places.values()}, places
        return self._known
