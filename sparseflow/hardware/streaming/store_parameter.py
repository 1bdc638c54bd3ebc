"""One parameter in a store: its index and its two slots. Shapes: Z kept values, in canonical order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparseflow.hardware.streaming import tiles
from sparseflow.hardware.streaming.slots import Layout, Pages, Traffic, chunks
from sparseflow.hardware.streaming.store_manifest import Record, damaged
from sparseflow.hardware.streaming.tiles import POINTER, VALUE, Tile
from sparseflow.hardware.streaming.updates import Rule

# Elements that are updated at once: small enough for a cache, and a multiple of every vector register.
CHUNK = 2**16
# Chunks that are updated at once in memory, where there are no copies of them. Each part starts all threads for each
# operation, and on a machine with other work, that takes longer than a cache saves.
_IN_PLACE = 16

T = TypeVar("T")

Kept = NDArray[np.int64] | None


@dataclass(frozen=True)
class Entry:
    """A parameter for a new store. mask: True = kept, None where nothing is pruned.

    weight: dense, what makes it, or None for zeros. keys: of the optimizer state to keep beside it; none where it is
    not trained.
    """

    name: str
    shape: tuple[int, ...]
    mask: Tensor | None
    weight: Tensor | Callable[[], Tensor] | None
    keys: tuple[str, ...] = ()


class StoredParameter:
    """A parameter whose committed slot is never written to: the first change after a commit goes to the other.

    `committed`: its record at the last commit, None where this file is newer. `torn`: whether a change was cut short,
    so that the values are neither old nor new.
    """

    def __init__(self, record: Record, committed: Record | None, pages: Pages, traffic: Traffic) -> None:
        self.committed, self.pages, self.torn = committed, pages, False
        self._record, self._slot, self.steps = record, record.slot, record.steps
        self._traffic = traffic
        # By slot and key.
        self._sections: dict[tuple[int, str | None], Tensor] = {}
        # Where the store is in memory, what takes longer to make than a small layer's product or update is kept: the
        # places of each tile, and the chunks of each slot.
        self._decoded: list[tuple[Tile, Kept]] | None = None
        self._chunked: dict[int, list[tuple[slice, Tensor, dict[str, Tensor]]]] = {}
        counts, head = None, 0
        if record.index_sha256 is not None:
            grid = tiles.boxes(record.shape)
            counts, head = pages.view(0, len(grid), torch.int32).tolist(), len(grid) * POINTER
        self.tiles = tiles.tiling(record.shape, counts, head)
        self._layout = layout_of(self.tiles, head, record.keys)
        if (self._layout.nnz, self._layout.nbytes) != (record.nnz, record.nbytes):
            got = f"an index of {self._layout.nnz} in {self._layout.nbytes}"
            why = f"expected {record.nnz} kept weights in {record.nbytes} bytes, got {got}"
            raise ValueError(damaged(record, why))
        self._index: NDArray[np.uint8] = pages.view(0, self._layout.index_bytes, torch.uint8).numpy()
        self.shape, self.keys, self.nnz = record.shape, record.keys, record.nnz
        self.whole = self.nnz == math.prod(self.shape)
        # Of all tiles, with values as the store has them.
        self.wire_bytes = sum(tile.wire_bytes(VALUE) for tile in self.tiles)
        self._read_of_index = sum(tile.index_bytes for tile in self.tiles)

    @property
    def record(self) -> Record:
        """As it is now."""
        now = {"slot": self._slot, "steps": self.steps}
        # Each update changes both, and few ask: a copy takes as long as the update of a bias.
        if (self._record.slot, self._record.steps) != (self._slot, self.steps):
            self._record = self._record.model_copy(update=now)
        return self._record

    def roll_back(self) -> None:
        """Goes back to what was committed."""
        assert self.committed is not None
        self._slot, self.steps, self.torn = self.committed.slot, self.committed.steps, False

    @property
    def index_bytes(self) -> int:
        """Of the index alone."""
        return self._layout.index_bytes

    def section(self, key: str | None = None) -> Tensor:
        """The values (None) or a state as they are now, Z long: a view, only to be read."""
        return self._section(self._slot, key)

    def memory(self) -> Tensor:
        """All that it consists of as numbers, for one in memory: what every view of it is a view of."""
        return self.pages.view(0, self._layout.nbytes // VALUE, torch.float32)

    def stream(self, key: str | None = None) -> Iterator[tuple[Tile, NDArray[np.uint8], Tensor]]:
        """Each tile with its index and its part of the values (None) or of a state: views, only to be read.

        The system is told of each before the one before it is used, so that it reads neither late nor more than that.
        """
        section = self.section(key)
        for tile in _each_expected(self.tiles, lambda tile: self._expect(tile, key)):
            self._traffic.add(read=tile.index_bytes + tile.nnz * VALUE)
            yield tile, self._index_of(tile), section[tile.value : tile.value + tile.nnz]

    def places(self) -> Iterator[tuple[Tile, Kept]]:
        """Each tile with the places in it that are kept; None for all."""
        if self.pages.in_memory:
            self._traffic.add(read=self._read_of_index)
            yield from self._decoded_tiles()
            return
        for tile in _each_expected(self.tiles, self._expect_index):
            self._traffic.add(read=tile.index_bytes)
            yield tile, tiles.places(tile, self._index_of(tile))

    def mask(self) -> Tensor:
        """True = kept, in the parameter's shape."""
        flat = torch.ones(math.prod(self.shape), dtype=torch.bool)
        for tile, kept in self.places():
            if kept is not None:
                part = flat[tile.place : tile.place + tile.places].zero_()
                part[torch.from_numpy(kept)] = True
        return flat.view(self.shape)

    def verify(self) -> None:
        """`ValueError` where the index is not what was written."""
        self._traffic.add(read=self._layout.index_bytes)
        expected = self.record.index_sha256
        if expected is not None and hashlib.sha256(self._index.data).hexdigest() != expected:
            raise ValueError(damaged(self.record, f"expected an index with the sha256 {expected}, got another"))

    def read(self, out: Tensor, key: str | None = None) -> Tensor:
        """Fills `out`, contiguous and of the parameter's shape; zeros at the pruned places."""
        flat = out.view(-1)
        if self.pages.in_memory:
            section = self.section(key)
            self._traffic.add(read=self._read_of_index + section.nbytes)
            for tile, kept in self._decoded_tiles():
                values = section[tile.value : tile.value + tile.nnz]
                tiles.scatter(flat[tile.place : tile.place + tile.places], kept, values)
            return out
        if self.whole:
            self._traffic.add(read=out.nbytes)
            self.pages.read(self._layout.offset(self._slot, key), flat)
            return out
        for tile, index, values in self.stream(key):
            tiles.scatter(flat[tile.place : tile.place + tile.places], tiles.places(tile, index), values)
        return out

    def gather(self, dense: Tensor) -> Tensor:
        """Z long: what a tensor of the parameter's shape has at the kept places; a view of it where that is all."""
        flat = dense.detach().reshape(-1)
        if self.whole:
            return flat
        found = torch.empty(self.nnz, dtype=dense.dtype)
        for tile, kept in self.places():
            part = flat[tile.place : tile.place + tile.places]
            found[tile.value : tile.value + tile.nnz] = tiles.gather(part, kept)
        return found

    def write(self, weight: Tensor) -> None:
        """Stores what a dense float32 tensor has at the kept places; the state stays as it is."""
        flat = weight.detach().reshape(-1)
        parts = (tiles.gather(flat[tile.place : tile.place + tile.places], kept) for tile, kept in self.places())
        self.put(parts)

    def put(self, parts: Iterable[Tensor], key: str | None = None) -> None:
        """Replaces the values (None) or a state by these parts, Z long together; the rest stays as it is."""
        with self._changing() as slot:
            self._keep(slot, [other for other in (None, *self.keys) if other != key])
            start = 0
            for part in parts:
                self._put(slot, key, start, part)
                start += part.numel()
            assert start == self.nnz, f"{self.record.name}: {start} of {self.nnz} values"

    def update(self, gradient_Z: Tensor, rule: Rule) -> None:
        """One step of an optimizer on values and state, a chunk at a time."""
        step = self.steps + 1
        keys = (None, *self.keys)
        with self._changing() as slot:
            if self.pages.in_memory:
                self._update_in_place(slot, gradient_Z, rule, step)
            else:
                for span, (values, *state) in self._chunks(keys):
                    rule(values, gradient_Z[span], dict(zip(self.keys, state, strict=True)), step)
                    for key, changed in zip(keys, (values, *state), strict=True):
                        self._put(slot, key, span.start, changed)
        self.steps = step

    @contextmanager
    def _changing(self) -> Iterator[int]:
        """Yields the slot to write all sections to, which counts from the end of the block on."""
        fresh = self.committed is not None and self.committed.slot == self._slot
        slot = 1 - self._slot if fresh else self._slot
        # Nothing reads the other slot before it is whole.
        self.torn = self.torn or not fresh
        yield slot
        self.torn, self._slot = False, slot

    def _keep(self, slot: int, keys: Iterable[str | None]) -> None:
        """Copies what is not to change into a slot, unless it is there."""
        if slot == self._slot:
            return
        for key in keys:
            for span, (values,) in self._chunks([key]):
                self._put(slot, key, span.start, values)

    def _chunks(self, keys: Sequence[str | None]) -> Iterator[tuple[slice, list[Tensor]]]:
        """Copies of sections, a chunk at a time, so that what is in memory is not as long as the layer."""
        copies = torch.empty(len(keys), min(CHUNK, self.nnz))

        def expect(span: slice) -> None:
            for key in keys:
                self._expect_section(key, span.start, span.stop)

        for span in _each_expected(chunks(self.nnz, CHUNK), expect):
            count = span.stop - span.start
            parts = list(copies[:, :count])
            for key, part in zip(keys, parts, strict=True):
                self.pages.read(self._layout.offset(self._slot, key) + span.start * VALUE, part)
            self._traffic.add(read=count * VALUE * len(keys))
            yield span, parts

    def _update_in_place(self, slot: int, gradient_Z: Tensor, rule: Rule, step: int) -> None:
        moved = self.nnz * VALUE * (1 + len(self.keys))
        self._traffic.add(read=moved, written=moved)
        for span, values, state in self._parts(slot):
            if slot != self._slot:
                values.copy_(self.section()[span])
                for key, moments in state.items():
                    moments.copy_(self.section(key)[span])
            rule(values, gradient_Z[span], state, step)

    def _parts(self, slot: int) -> list[tuple[slice, Tensor, dict[str, Tensor]]]:
        """Values and state of a slot in memory, chunk by chunk."""
        if slot not in self._chunked:
            values, state = self._section(slot, None), {key: self._section(slot, key) for key in self.keys}
            self._chunked[slot] = [
                (span, values[span], {key: moments[span] for key, moments in state.items()})
                for span in chunks(self.nnz, _IN_PLACE * CHUNK)
            ]
        return self._chunked[slot]

    def _section(self, slot: int, key: str | None) -> Tensor:
        if (slot, key) not in self._sections:
            offset = self._layout.offset(slot, key)
            self._sections[slot, key] = self.pages.view(offset, self.nnz, torch.float32)
        return self._sections[slot, key]

    def _decoded_tiles(self) -> list[tuple[Tile, Kept]]:
        if self._decoded is None:
            self._decoded = [(tile, tiles.places(tile, self._index_of(tile))) for tile in self.tiles]
        return self._decoded

    def _index_of(self, tile: Tile) -> NDArray[np.uint8]:
        return self._index[tile.offset : tile.offset + tile.index_bytes]

    def _expect(self, tile: Tile, key: str | None) -> None:
        self._expect_index(tile)
        self._expect_section(key, tile.value, tile.value + tile.nnz)

    def _expect_index(self, tile: Tile) -> None:
        self.pages.expect(tile.offset, tile.index_bytes)

    def _expect_section(self, key: str | None, start: int, stop: int) -> None:
        offset = self._layout.offset(self._slot, key)
        self.pages.expect(offset + start * VALUE, (stop - start) * VALUE)

    def _put(self, slot: int, key: str | None, start: int, values: Tensor) -> None:
        self.pages.write(self._layout.offset(slot, key) + start * VALUE, values)
        self._traffic.add(written=values.nbytes)


def _each_expected(items: Sequence[T], expect: Callable[[T], None]) -> Iterator[T]:
    expected = 0
    for number, item in enumerate(items):
        while expected < min(number + 2, len(items)):
            expect(items[expected])
            expected += 1
        yield item


def layout_of(grid: tuple[Tile, ...], head: int, keys: tuple[str, ...]) -> Layout:
    """Of a parameter with these tiles; `head`: bytes before the first one's index, where the tiles are counted."""
    return Layout(head + sum(tile.index_bytes for tile in grid), sum(tile.nnz for tile in grid), keys)
