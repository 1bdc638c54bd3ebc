"""How the images of a convolution stand in scratch memory, and how they are cut into work.

A convolution of any stride and dilation is one of stride 1 over *phases*: an input channel is cut into one plane for
each remainder of its rows and columns by the stride, and each weight reads exactly one of them, at a fixed shift. A
kept weight is then a single offset into scratch memory, the same for every output position.

`group` images are interleaved, position by position, so that a row of them fills whole vectors.

Words: a *cell* is a position of a phase; a *strip* is the rows that one unit of work computes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from sparseflow_kernels.cpu_tiles import VECTORS

# Bytes of gathered planes that a strip may take: they are to stay in a core's second-level cache.
_STRIP_BYTES = 1 << 19
# Columns that a flattened image has at most.
_FLAT_COLUMNS = 256


@dataclass(frozen=True)
class Axis:
    """One dimension, height or width, of a convolution."""

    size: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def out(self) -> int:
        return (self.size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    @property
    def low(self) -> int:
        """The least shift, in cells, of a weight: 0 or less."""
        return -self.padding // self.stride

    @property
    def high(self) -> int:
        """The largest shift, in cells, of a weight; below 0 where padding reaches farther than the kernel."""
        return ((self.kernel - 1) * self.dilation - self.padding) // self.stride

    @property
    def cells(self) -> int:
        """Cells of the largest phase."""
        return phase_size(self.size, self.stride, 0)


def phase_size(size: int, stride: int, phase: int) -> int:
    """How many of the numbers below `size` leave that remainder."""
    return max(0, -(-(size - phase) // stride))


@dataclass(frozen=True)
class Layout:
    """A plane of scratch memory, in floats: `rows` rows of `pitch`, whose first number stands at `left`.

    Behind the last row there is room for a vector that runs over it.
    """

    left: int
    pitch: int
    rows: int
    size: int


@dataclass(frozen=True)
class Tile:
    """Vectors that are accumulated together: a few of a row, in a few rows."""

    rows: int
    vectors: int

    @property
    def size(self) -> int:
        return self.rows * self.vectors


@dataclass(frozen=True)
class Geometry:
    """Everything that the kernels of one image size have compiled in. Channels and images are arguments."""

    rows: Axis
    columns: Axis
    lanes: int
    group: int
    # Rows of a strip: of y in the forward, of cells of x in the backward.
    forward_strip: int
    backward_strip: int

    @property
    def strides(self) -> tuple[int, int]:
        return self.rows.stride, self.columns.stride

    @property
    def phases(self) -> int:
        return self.rows.stride * self.columns.stride

    @property
    def inside(self) -> tuple[int, int]:
        """Height and width of x."""
        return self.rows.size, self.columns.size

    @property
    def outside(self) -> tuple[int, int]:
        """Height and width of y."""
        return self.rows.out, self.columns.out

    @property
    def y_in_place(self) -> bool:
        """Whether y is written where it is, rather than to scratch memory."""
        return self.group == 1

    @property
    def x_in_place(self) -> bool:
        """Whether the backward reads its own rows of x, and writes those of dx, where they are."""
        return self.group == 1 and self.phases == 1

    @property
    def packs_all_dy(self) -> bool:
        """Whether each row of dy is read at all: with more padding than kernel some see no image."""
        return self.rows.high >= 0 and self.rows.out <= self.rows.cells - self.rows.low

    @property
    def y_vectors(self) -> int:
        """Vectors of a row of y."""
        return -(-self.columns.out * self.group // self.lanes)

    @property
    def x_vectors(self) -> int:
        """Vectors of a row of cells."""
        return -(-self.columns.cells * self.group // self.lanes)

    @property
    def y_rest(self) -> int:
        """Numbers in the last vector of a row of y, where it is not a whole one."""
        return self.columns.out % self.lanes if self.y_in_place else 0

    @property
    def x_rest(self) -> int:
        """The same for the backward's rows of x."""
        return self.columns.cells % self.lanes if self.x_in_place else 0

    @functools.cached_property
    def padded_x(self) -> Layout:
        """What the forward gathers from; its row 0 stands `low` rows from the strip's first."""
        left, right = -self.columns.low, max(0, self.columns.high)
        pitch = max(self.columns.cells + left, self.columns.out + right)
        return self._padded(left, pitch, self.forward_strip)

    @functools.cached_property
    def padded_dy(self) -> Layout:
        """What the backward gathers from; its row 0 stands `high` rows before the strip's first."""
        left, right = max(0, self.columns.high), -self.columns.low
        pitch = max(self.columns.out + left, self.columns.cells + right)
        return self._padded(left, pitch, self.backward_strip)

    @functools.cached_property
    def plain_y(self) -> Layout:
        """The forward's own rows of y."""
        return self._plain(self.y_vectors, self.forward_strip)

    @functools.cached_property
    def plain_x(self) -> Layout:
        """The backward's own rows of x, and of dx."""
        return self._plain(self.x_vectors, self.backward_strip)

    @functools.cached_property
    def forward_tile(self) -> Tile:
        return _tile(self.rows.out, self.y_vectors, VECTORS)

    @functools.cached_property
    def backward_tile(self) -> Tile:
        # It holds x beside its sums: too much for the sixteen registers of targets with fewer lanes.
        return _tile(self.rows.cells, self.x_vectors, VECTORS if self.lanes == 16 else VECTORS // 2)

    def _padded(self, left: int, pitch: int, strip: int) -> Layout:
        # The margin between two rows serves both.
        left, pitch, rows = left * self.group, pitch * self.group, strip + self.rows.high - self.rows.low
        return Layout(left, pitch, rows, _up(left + pitch * rows, self.lanes) + self.lanes)

    def _plain(self, vectors: int, rows: int) -> Layout:
        pitch = vectors * self.lanes
        return Layout(0, pitch, rows, pitch * rows)


def axes(rows: Axis, columns: Axis, lanes: int) -> tuple[Axis, Axis]:
    """The same convolution, over images cut differently where that is free: 1x1 kernels see no neighbours."""
    simple = Axis(1)
    if any((a.kernel, a.stride, a.padding) != (simple.kernel, simple.stride, simple.padding) for a in (rows, columns)):
        return rows, columns
    positions = rows.size * columns.size
    widths = [width for width in range(lanes, _FLAT_COLUMNS + 1, lanes) if positions % width == 0]
    if not widths:
        return rows, columns
    return Axis(positions // widths[-1]), Axis(widths[-1])


@functools.lru_cache(maxsize=256)
def geometry(rows: Axis, columns: Axis, lanes: int, planes: int, images: int, threads: int) -> Geometry:
    """The arrangement for that many images; `planes`: the larger of input and output channels."""
    group = _group(columns.out, lanes, images, threads)
    whole = Geometry(rows, columns, lanes, group, rows.out, rows.cells)
    units = -(-threads // -(-images // group))
    span = rows.high - rows.low
    forward = _strip(rows.out, whole.forward_tile.rows, span, planes * whole.padded_x.pitch, units)
    backward = _strip(rows.cells, whole.backward_tile.rows, span, planes * whole.padded_dy.pitch, units)
    return Geometry(rows, columns, lanes, group, forward, backward)


def _group(width: int, lanes: int, images: int, threads: int) -> int:
    """Images interleaved: as few as fill whole vectors, and leave each thread its share."""

    def cost(group: int) -> float:
        groups = -(-images // group)
        # Fewer groups than threads are cut into strips.
        rounds = _up(groups, threads) if groups > threads else groups
        # Interleaving costs a few shuffles.
        return _up(width * group, lanes) / width * rounds * (1 if group == 1 else 1.05)

    return min((1 << i for i in range(lanes.bit_length())), key=cost)


def _strip(count: int, tile: int, span: int, row: int, units: int) -> int:
    """Rows of a strip, in whole tiles: as many as the cache holds, and few enough to make that many units.

    `span`: rows that a strip reads beyond its own; `row`: numbers that one row takes over all planes.
    """
    # With fewer rows than it reads beyond its own, a strip copies more than it computes.
    most = max(_STRIP_BYTES // (4 * row) - span, span, tile)
    strips = max(-(-count // most), units)
    return min(_up(-(-count // strips), tile), count)


def _tile(rows: int, vectors: int, limit: int) -> Tile:
    """The shape with the fewest steps, each with its overhead of about two vectors, and then the least to gather."""

    def cost(tile: Tile) -> tuple[int, int]:
        tiles = -(-rows // tile.rows) * -(-vectors // tile.vectors)
        return rows * vectors + 2 * tiles, (tile.rows + 2) * (tile.vectors + 1)

    shapes = [Tile(r, v) for v in range(1, limit + 1) for r in range(1, limit // v + 1) if r <= rows and v <= vectors]
    return min(shapes, key=cost)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
