"""The wire between the store and the wafers: weights go out as tiles, gradients of the kept weights come back.

Everything crosses here, so that what is counted is what was sent. Gradients need no index: they come in the canonical
order, which both ends know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparseflow.hardware.streaming import tiles
from sparseflow.hardware.streaming.store import Store
from sparseflow.hardware.streaming.tiles import VALUE, Tile

Phase = Literal["forward", "backward"]
Direction = Literal["out", "back"]


@dataclass(frozen=True)
class Payload:
    """One tile on the wire. values: the kept ones beside row pointers and columns, or one for every place."""

    values: Tensor
    value_bytes: int
    pointers: NDArray[np.uint32] | None = None
    columns: NDArray[np.uint16] | None = None

    @property
    def nbytes(self) -> int:
        """Of all that it consists of."""
        index = sum(part.nbytes for part in (self.pointers, self.columns) if part is not None)
        return self.values.numel() * self.value_bytes + index


@dataclass(frozen=True)
class Message:
    """What crossed at one time: a parameter, or its gradient. nbytes: as it left; `systems`: how many received it."""

    name: str
    phase: Phase
    direction: Direction
    nbytes: int
    systems: int = 1


class Channel:
    """Counts exactly what crosses. `messages`: of this step, in order; `totals`: bytes by name, phase and direction.

    value_bytes, gradient_bytes: of a number on the wire. rounded: what the wire's format makes of values, as float32.
    strict: assert that no pruned weight is ever sent, which takes a mask of each parameter in memory.
    """

    def __init__(
        self,
        store: Store,
        value_bytes: int = VALUE,
        gradient_bytes: int = VALUE,
        rounded: Callable[[Tensor], Tensor] | None = None,
        strict: bool = False,
    ) -> None:
        self.messages: list[Message] = []
        self.totals: Counter[tuple[str, Phase, Direction]] = Counter()
        self._store, self._rounded, self._strict = store, rounded, strict
        self._value_bytes, self._gradient_bytes = value_bytes, gradient_bytes
        # Whether a system receives the very numbers that the store has, and nobody looks at the tiles.
        self._plain = rounded is None and value_bytes == VALUE and not strict
        # By name, with the digest of the index that they were made of.
        self._masks: dict[str, tuple[str | None, Tensor]] = {}

    def send_weights(self, name: str, phase: Phase, out: Tensor, systems: int = 1) -> Tensor:
        """Fills `out`, contiguous and of the parameter's shape, with what each of the systems receives."""
        parameter, flat, nbytes = self._store.parameter(name), out.view(-1), 0
        if self._plain:
            self._count(Message(name, phase, "out", parameter.wire_bytes, systems))
            return parameter.read(out)
        for tile, index, values in parameter.stream():
            payload = self._pack(tile, index, values)
            if self._strict:
                check_payload(tile, payload, self._kept(name)[tile.place : tile.place + tile.places])
            receive(tile, payload, flat[tile.place : tile.place + tile.places])
            nbytes += payload.nbytes
        self._count(Message(name, phase, "out", nbytes, systems))
        return out

    def lends(self, name: str) -> bool:
        """Whether the parameter can be used where it lies: all of it, in the memory of a system."""
        parameter = self._store.parameter(name)
        return self._plain and parameter.whole and parameter.pages.in_memory

    def lend_weights(self, name: str, phase: Phase, systems: int = 1) -> None:
        """Counts what `send_weights` would have sent of a parameter that is lent."""
        parameter = self._store.parameter(name)
        self._store.traffic.add(read=parameter.nnz * VALUE)
        self._count(Message(name, phase, "out", parameter.wire_bytes, systems))

    def send_gradient(self, name: str, phase: Phase, gradient_Z: Tensor) -> Tensor:
        """The gradient of the kept weights, as the store receives it: exactly nnz values, in canonical order."""
        nnz = self._store.nnz(name)
        assert gradient_Z.shape == (nnz,), f"{name}: {nnz} weights are kept, the gradient has {tuple(gradient_Z.shape)}"
        self._count(Message(name, phase, "back", nnz * self._gradient_bytes))
        return gradient_Z

    def end_step(self) -> list[Message]:
        """The messages of the step that ends here; those of the next begin."""
        sent, self.messages = self.messages, []
        return sent

    def _count(self, message: Message) -> None:
        self.messages.append(message)
        self.totals[message.name, message.phase, message.direction] += message.nbytes

    def _pack(self, tile: Tile, index: NDArray[np.uint8], values: Tensor) -> Payload:
        if self._rounded is not None:
            values = self._rounded(values)
        if not tile.is_dense(self._value_bytes):
            return Payload(values, self._value_bytes, *tiles.csr_index(tile, index))
        if not tile.whole:
            dense = torch.empty(tile.places)
            tiles.scatter(dense, tiles.places(tile, index), values)
            values = dense
        return Payload(values, self._value_bytes)

    def _kept(self, name: str) -> Tensor:
        digest = self._store.parameter(name).record.index_sha256
        if name not in self._masks or self._masks[name][0] != digest:
            self._masks[name] = digest, self._store.mask(name).view(-1)
        return self._masks[name][1]


def receive(tile: Tile, payload: Payload, out: Tensor) -> None:
    """Writes what a tile's payload says into its places, flat, zeros at those that were not sent."""
    values, kept = payload.values.to(out.dtype), None
    if payload.pointers is not None and payload.columns is not None:
        kept = tiles.csr_places(tile, payload.pointers, payload.columns)
    tiles.scatter(out, kept, values)


def check_payload(tile: Tile, payload: Payload, kept: Tensor) -> None:
    """AssertionError where it has a pruned weight, or not every kept one, each once. `kept`: the tile's mask, flat."""
    if payload.pointers is None or payload.columns is None:
        assert payload.values.numel() == tile.places, f"{tile}: a dense tile of {payload.values.numel()} values"
        assert not payload.values[~kept].any(), f"{tile}: a pruned weight was sent"
        return
    sent = torch.from_numpy(tiles.csr_places(tile, payload.pointers, payload.columns))
    assert payload.values.numel() == sent.numel() == tile.nnz, f"{tile}: {sent.numel()} places were sent"
    assert torch.equal(sent, kept.nonzero().view(-1)), f"{tile}: a pruned weight was sent"
