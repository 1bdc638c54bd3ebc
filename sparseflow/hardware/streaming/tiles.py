"""A weight as tiles, each in CSR or dense, whichever is fewer bytes: the form in which weights are kept and sent.

The weight is seen as a matrix: its first dimension by all others; a vector is one row. A tile has at most 65,536
columns, so that a column takes 16 bits, and all of them where the matrix has no more; then it has as many rows as make
about a million places, else one. So the places of a tile follow one another in the weight, and its kept values in
canonical order, which makes either a plain slice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# What 16 bits can name.
COLUMNS = 2**16
# What is decoded at once is bounded, whatever the layer's size.
PLACES = 2**20
# Bytes of a column, and of a row pointer.
COLUMN, POINTER = 2, 4
# Bytes of a value in the store.
VALUE = 4


@dataclass(frozen=True)
class Tile:
    """Where a tile lies: its first place in the flat weight, its first value in canonical order, its index in bytes."""

    rows: int
    columns: int
    nnz: int
    place: int
    value: int
    offset: int

    @property
    def places(self) -> int:
        """Kept or pruned."""
        return self.rows * self.columns

    @property
    def whole(self) -> bool:
        """Whether nothing is pruned."""
        return self.nnz == self.places

    def csr_bytes(self, value_bytes: int) -> int:
        """Of values, columns and row pointers."""
        return self.nnz * (value_bytes + COLUMN) + (self.rows + 1) * POINTER

    def dense_bytes(self, value_bytes: int) -> int:
        """Of a value for every place."""
        return self.places * value_bytes

    def is_dense(self, value_bytes: int) -> bool:
        """Whether it is dense where a value has that many bytes; CSR must be fewer bytes to be chosen."""
        return self.dense_bytes(value_bytes) <= self.csr_bytes(value_bytes)

    def wire_bytes(self, value_bytes: int) -> int:
        """Of the form that is fewer."""
        return min(self.csr_bytes(value_bytes), self.dense_bytes(value_bytes))

    @property
    def index_bytes(self) -> int:
        """Of its index in the store: row pointers and columns; one bit a place where it is dense; 0 where whole."""
        if self.whole:
            return 0
        if self.is_dense(VALUE):
            return _padded(-(-self.places // 8))
        return _padded((self.rows + 1) * POINTER + self.nnz * COLUMN)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the matrix that a weight is seen as."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


def boxes(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Rows and columns of each tile, in the order of their places."""
    rows, columns = matrix_shape(shape)
    if rows * columns == 0:
        return []
    if columns > COLUMNS:
        widths = [min(COLUMNS, columns - first) for first in range(0, columns, COLUMNS)]
        return [(1, width) for _ in range(rows) for width in widths]
    height = max(1, PLACES // columns)
    return [(min(height, rows - first), columns) for first in range(0, rows, height)]


def tiling(shape: tuple[int, ...], counts: list[int] | None, offset: int = 0) -> tuple[Tile, ...]:
    """The tiles of a weight, given how many values each keeps (None: all); their indices begin at `offset`."""
    found: list[Tile] = []
    place = value = 0
    grid = boxes(shape)
    for (rows, columns), nnz in zip(grid, counts or [rows * columns for rows, columns in grid], strict=True):
        tile = Tile(rows, columns, nnz, place, value, offset)
        found.append(tile)
        place, value, offset = place + tile.places, value + nnz, offset + tile.index_bytes
    return tuple(found)


def count(mask: Tensor) -> list[int]:
    """How many are kept in each tile of a mask."""
    flat, found, place = mask.reshape(-1), [], 0
    for rows, columns in boxes(tuple(mask.shape)):
        found.append(int(flat[place : place + rows * columns].count_nonzero()))
        place += rows * columns
    return found


def encode(tile: Tile, mask: NDArray[np.bool_]) -> bytes:
    """The index of one tile; `mask` has its places, flat."""
    if tile.whole:
        return b""
    if tile.is_dense(VALUE):
        index = np.packbits(mask, bitorder="little").tobytes()
    else:
        pointers, columns = csr_of(tile, np.flatnonzero(mask))
        index = pointers.tobytes() + columns.tobytes()
    return index.ljust(tile.index_bytes, b"\0")


def places(tile: Tile, index: NDArray[np.uint8]) -> NDArray[np.int64] | None:
    """Which places of the tile are kept, counted from its first, ascending; None for all. `index`: the tile's."""
    if tile.whole:
        return None
    return _bit_places(tile, index) if tile.is_dense(VALUE) else csr_places(tile, *csr_index(tile, index))


def csr_index(tile: Tile, index: NDArray[np.uint8]) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Row pointers and columns of a tile, as they lie in its index where it is CSR there."""
    if tile.is_dense(VALUE):
        return csr_of(tile, _bit_places(tile, index))
    middle = (tile.rows + 1) * POINTER
    columns = index[middle : middle + tile.nnz * COLUMN].view(np.uint16)
    return index[:middle].view(np.uint32), columns


def csr_of(tile: Tile, kept: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Row pointers and columns of these places of a tile."""
    pointers = np.zeros(tile.rows + 1, np.uint32)
    np.cumsum(np.bincount(kept // tile.columns, minlength=tile.rows), out=pointers[1:])
    return pointers, (kept % tile.columns).astype(np.uint16)


def csr_places(tile: Tile, pointers: NDArray[np.uint32], columns: NDArray[np.uint16]) -> NDArray[np.int64]:
    """The places that row pointers and columns name."""
    first = np.arange(tile.rows, dtype=np.int64) * tile.columns
    counts: NDArray[np.int64] = np.diff(pointers).astype(np.int64)
    found: NDArray[np.int64] = np.repeat(first, counts) + columns
    return found


def scatter(out: Tensor, kept: NDArray[np.int64] | None, values: Tensor) -> None:
    """Writes values to these places of a flat tile, zeros to all others; None for all."""
    if kept is None:
        out.copy_(values)
        return
    out.zero_().scatter_(0, torch.from_numpy(kept), values)


def gather(dense: Tensor, kept: NDArray[np.int64] | None) -> Tensor:
    """The values at these places of a flat tile; None for all."""
    return dense if kept is None else dense.index_select(0, torch.from_numpy(kept))


def _bit_places(tile: Tile, index: NDArray[np.uint8]) -> NDArray[np.int64]:
    if tile.whole:
        return np.arange(tile.places, dtype=np.int64)
    bits = np.unpackbits(index[: -(-tile.places // 8)], count=tile.places, bitorder="little")
    return np.flatnonzero(bits.view(np.bool_))


def _padded(nbytes: int) -> int:
    # Row pointers are read in place, so that each index begins where one may lie.
    return -(-nbytes // POINTER) * POINTER
