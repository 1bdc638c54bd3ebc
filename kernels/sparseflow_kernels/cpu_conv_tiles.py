"""What the two kernels of a convolution have in common: units of work, tiles of a strip, blocks of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llvmlite import ir

from sparseflow_kernels.cpu_conv_geometry import Geometry, Tile
from sparseflow_kernels.cpu_ir import Code, Index, Int, Storage
from sparseflow_kernels.cpu_target import Target
from sparseflow_kernels.cpu_tiles import share


@dataclass(frozen=True)
class Variant:
    """What is compiled into a kernel beside the geometry."""

    target: Target
    geometry: Geometry
    # Of x, y and their gradients.
    storage: Storage
    # Whether the weights come in several blocks.
    blocked: bool
    need_dx: bool = True


# (first image, images there, first row: a known 0 if there is but one strip, row behind the last)
Unit = Callable[[Int, Int, Index, Int], None]


def each_unit(
    code: Code, geometry: Geometry, images: Int, rows: int, strip: int, thread: Int, threads: Int, unit: Unit
) -> None:
    """Runs this thread's share of the strips of all groups of images."""
    group, strips = geometry.group, -(-rows // strip)
    first, last = share(code, (images + (group - 1)) // group * strips, thread, threads)

    def step(u: Int) -> None:
        image = u // strips * group
        live = (images - image).min(group)
        if strips == 1:
            unit(image, live, 0, code.number(rows))
        else:
            start = u % strips * strip
            unit(image, live, start, (start + strip).min(rows))

    code.loop(first, last, step)


@dataclass(frozen=True)
class Shape:
    """A tile as it is compiled: whole, or the rest at the lower or right edge.

    `masked`: it ends its rows, whose last vector is not a whole one.
    """

    rows: int
    vectors: int
    masked: bool

    @property
    def name(self) -> str:
        return f"tile{self.rows}x{self.vectors}{'masked' if self.masked else ''}"

    @property
    def grid(self) -> list[tuple[int, int]]:
        """(row, vector) of each of its vectors."""
        return [(i, j) for i in range(self.rows) for j in range(self.vectors)]

    def masks(self, code: Code, rest: int) -> list[ir.Value | None]:
        """For each of them a mask, where it is a row's last with only `rest` numbers."""
        tail = code.first_lanes(rest) if self.masked else None
        return [tail if j == self.vectors - 1 else None for _, j in self.grid]


def shapes(tile: Tile, rows: int, vectors: int, masked: bool) -> list[Shape]:
    """All shapes of tiles that such a strip needs; `masked`: the last vector of a row is not a whole one."""
    heights = [height for height in (tile.rows, rows % tile.rows) if height]
    return [Shape(height, *width) for height in heights for width in dict.fromkeys(_widths(tile, vectors, masked))]


def each_tile(
    code: Code,
    tile: Tile,
    rows: int,
    vectors: int,
    masked: bool,
    count: Int,
    visit: Callable[[str, Int, int], None],
) -> None:
    """Visits the tiles of a strip of `count` rows, of `rows` in all: (function, row, first vector)."""

    def line(height: int, row: Int) -> None:
        for i, (width, ends) in enumerate(_widths(tile, vectors, masked)):
            visit(Shape(height, width, ends).name, row, i * tile.vectors)

    whole = count // tile.rows * tile.rows
    code.loop(0, whole, lambda row: line(tile.rows, row), step=tile.rows)
    if rows % tile.rows:
        with code.when(whole < count):
            line(rows % tile.rows, whole)


def _widths(tile: Tile, vectors: int, masked: bool) -> list[tuple[int, bool]]:
    """Vectors of each tile of a row, and whether the last of them is masked."""
    starts = range(0, vectors, tile.vectors)
    return [(min(tile.vectors, vectors - at), masked and at == starts[-1]) for at in starts]


class Partial:
    """The sums of a tile, kept in memory from one block of weights to the next."""

    def __init__(self, code: Code, count: int, room: Int, begins: ir.Value | None, ends: ir.Value | None) -> None:
        """`begins`, `ends`: whether this is the first, the last block; None: it is the only one."""
        self.code, self.count, self.room, self.begins, self.ends = code, count, room, begins, ends

    def load(self, row: Int, zeros: Int) -> list[ir.Value]:
        """The sums up to here; `zeros`: the address of a vector of them."""
        code = self.code
        if self.begins is None:
            return [code.zeros()] * self.count
        source, step = code.either(self.begins, zeros, self._place(row)), code.either(self.begins, 0, code.lanes)
        return [code.load(source, step * j) for j in range(self.count)]

    def at_first(self, vector: ir.Value) -> ir.Value:
        """The vector in the first block, zeros in the others."""
        if self.begins is None:
            return vector
        return self.code.builder.select(self.begins, vector, self.code.zeros())

    @contextlib.contextmanager
    def finish(self, row: Int, sums: Sequence[ir.Value]) -> Iterator[None]:
        """What is written inside runs in the last block alone; in the others the sums are kept."""
        if self.ends is None:
            yield
            return
        with self.code.builder.if_else(self.ends) as (last, other):
            with last:
                yield
            with other:
                for j, value in enumerate(sums):
                    self.code.store(value, self._place(row), j * self.code.lanes)

    def _place(self, row: Int) -> Int:
        return self.room + row * (self.count * self.code.lanes * 4)


def each_list(
    code: Code,
    blocked: bool,
    blocks: Int,
    rows: Int,
    room: Int,
    count: int,
    visit: Callable[[Partial, Int, Int], None],
) -> None:
    """Visits each row of each block of weights: (partial sums, number of its list, row)."""
    if not blocked:
        only = Partial(code, count, room, None, None)
        code.loop(0, rows, lambda r: visit(only, r, r))
        return

    def block(b: Int) -> None:
        partial = Partial(code, count, room, b.equals(0), (b + 1).equals(blocks))
        code.loop(0, rows, lambda r: visit(partial, b * rows + r, r))

    code.loop(0, blocks, block)


def clear(code: Code, target: Int, count: Int) -> None:
    """Zeros to `count` floats, a multiple of the lanes."""
    code.loop(0, count, lambda i: code.store(code.zeros(), target, i), step=code.lanes)
