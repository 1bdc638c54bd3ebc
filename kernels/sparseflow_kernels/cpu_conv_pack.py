"""Copies images into the interleaved, padded planes of `cpu_conv_geometry`, and back.

Position by position, `group` images are interleaved by zipping vectors (see `cpu_shuffle`); the phases of a stride
are picked out of a row by shuffles. A row of the image costs one load, one store and log2(group) shuffles a vector.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from sparseflow_kernels.cpu_conv_geometry import Layout, phase_size
from sparseflow_kernels.cpu_ir import Code, Index, Int, Storage
from sparseflow_kernels.cpu_shuffle import interleave, separate


class Images:
    """A contiguous (N, C, H, W) tensor in memory, of which one group of images is read or written."""

    def __init__(
        self, code: Code, address: Int, channels: Int, size: tuple[int, int], storage: Storage, first: Int, live: Int
    ) -> None:
        """`live` images from `first` on are there; the others read as zeros and are not written."""
        self.storage: Storage = storage
        self.code, self.channels, self.live = code, channels, live
        self.height, self.width = size
        self.bytes = 4 if storage == "f32" else 2
        self.image = channels * (self.height * self.width)
        self.address = address + first * self.image * self.bytes
        self._nothing = code.buffer(1)
        code.store(code.zeros(), self._nothing, 0)
        self._dump = code.buffer(1)

    def place(self, channel: Index, row: Index) -> Int:
        """Numbers from the group's first image to that row."""
        return self.code.number(channel) * (self.height * self.width) + self.code.number(row) * self.width

    def load(self, image: int, place: Int, count: int) -> ir.Value:
        """`count` numbers of an image, zeros behind them."""
        code = self.code
        if count <= 0:
            return code.zeros()
        return code.load(self._address(image, place, self._nothing), 0, self.storage, self._mask(count))

    def store(self, value: ir.Value, image: int, place: Int, count: int) -> None:
        if count > 0:
            self.code.store(value, self._address(image, place, self._dump), 0, self.storage, self._mask(count))

    def _address(self, image: int, place: Int, otherwise: Int) -> Int:
        address = self.address + (self.image * image + place) * self.bytes
        return address if image == 0 else self.code.either(self.live >= image + 1, address, otherwise)

    def _mask(self, count: int) -> ir.Value | None:
        return None if count >= self.code.lanes else self.code.first_lanes(count)


@dataclass(frozen=True)
class Sums:
    """Where the sum of each channel is added up, over the rows [first, last) alone."""

    target: Int
    first: Int
    last: Int


class Planes:
    """A strip of scratch planes, [channel * phases + phase], of a group of images; their row 0 is cell row `origin`.

    A known origin means that there is but one strip: what it does not cover is never needed.
    """

    def __init__(
        self, code: Code, group: int, strides: tuple[int, int], address: Int, layout: Layout, origin: Index
    ) -> None:
        self.code, self.group, self.strides = code, group, strides
        self.address, self.layout, self.origin = address, layout, origin

    def pack(
        self,
        images: Images,
        positive: Images | None = None,
        always: ir.Value | None = None,
        sums: Sums | None = None,
    ) -> None:
        """Copies the strip's rows of all channels into the planes; rows outside of the images are cleared.

        `positive`: numbers are cleared where those images are not above 0, unless the bit `always` is set.
        """
        code, blocks = self.code, _Blocks(self, images)

        def channel(c: Int) -> None:
            total = code.zeros()
            for phase in range(self.strides[0]):
                starts, first, last = self._starts(c, phase), *self._rows(images.height, phase)
                self._clear_around(starts, first, last)
                step = functools.partial(self._pack_rows, blocks, images, positive, always, sums, c, phase, starts)
                (total,) = code.loop(first, last, step, [total], step=blocks.rows)
            if sums is not None:
                code.add_float(code.sum(total), sums.target, c, ir.Constant(ir.IntType(1), 1))

        code.loop(0, images.channels, channel)

    def unpack(self, images: Images) -> None:
        """Copies the strip's rows of all planes back; rows outside of the images are left out."""
        code, blocks = self.code, _Blocks(self, images)

        def channel(c: Int) -> None:
            for phase in range(self.strides[0]):
                starts, first, last = self._starts(c, phase), *self._rows(images.height, phase)
                step = functools.partial(self._unpack_rows, blocks, images, c, phase, starts)
                code.loop(first, last, step, step=blocks.rows)

        code.loop(0, images.channels, channel)

    def known_rows(self, height: int, phase: int) -> tuple[int, int] | None:
        """First and last row of the images that an only strip covers; None: there are several strips."""
        if isinstance(self.origin, Int):
            return None
        data = phase_size(height, self.strides[0], phase)
        first = max(0, self.origin)
        return first, max(first, min(data, self.origin + self.layout.rows))

    def _rows(self, height: int, phase: int) -> tuple[Int, Int]:
        """First and last row of the images that the strip covers."""
        known = self.known_rows(height, phase)
        if known is not None:
            return self.code.number(known[0]), self.code.number(known[1])
        origin, data = self.code.number(self.origin), phase_size(height, self.strides[0], phase)
        first = self.code.either(origin < 0, 0, origin).min(data)
        last = (origin + self.layout.rows).min(data)
        return first, self.code.either(last < first, first, last)

    def _starts(self, channel: Int, phase: int) -> list[Int]:
        """Where the planes of that row phase begin, one for each column phase."""
        planes = [(channel * self.strides[0] + phase) * self.strides[1] + i for i in range(self.strides[1])]
        return [plane * self.layout.size + self.layout.left for plane in planes]

    def _clear_around(self, starts: list[Int], first: Int, last: Int) -> None:
        """Clears the strip's rows before and behind those of the images: another strip may have left numbers there."""
        if not isinstance(self.origin, Int):
            return
        code, pitch = self.code, self.layout.pitch
        for start in starts:

            def row(i: Int, start: Int = start) -> None:
                for at in range(0, pitch, code.lanes):
                    code.store(code.zeros(), self.address, start + i * pitch + at)

            code.loop(0, first - self.origin, row)
            code.loop(last - self.origin, self.layout.rows, row)

    def _pack_rows(
        self,
        blocks: _Blocks,
        images: Images,
        positive: Images | None,
        always: ir.Value | None,
        sums: Sums | None,
        channel: Int,
        phase: int,
        starts: list[Int],
        q: Int,
        total: ir.Value,
    ) -> list[ir.Value]:
        """The rows of one block, from cell row q on; `total` and what they add to it."""
        code = self.code
        place, inside, before = images.place(channel, q * self.strides[0] + phase), self._row(q), total
        for at, counts in blocks.columns():
            vectors: list[list[ir.Value]] = []
            for image in range(self.group):
                loaded = [images.load(image, place + (at + j * code.lanes), count) for j, count in enumerate(counts)]
                if positive is not None:
                    signs = [positive.load(image, place + (at + j * code.lanes), n) for j, n in enumerate(counts)]
                    loaded = [code.where_positive(sign, vector, always) for sign, vector in zip(signs, loaded)]
                if sums is not None:
                    total = functools.reduce(code.add, loaded, total)
                vectors.append(loaded)
            for i, start in enumerate(starts):
                mixed = interleave(code, [_phase(code, loaded, i) for loaded in vectors])
                for vector, offset in zip(mixed, blocks.offsets(at, counts, i)):
                    if offset is not None:
                        code.store(vector, self.address, start + inside + offset)
        if sums is None or not isinstance(self.origin, Int):
            return [total]
        own = code.builder.and_(q >= sums.first, q < sums.last)
        return [code.builder.select(own, total, before)]

    def _unpack_rows(
        self, blocks: _Blocks, images: Images, channel: Int, phase: int, starts: list[Int], q: Int
    ) -> None:
        code = self.code
        place, inside = images.place(channel, q * self.strides[0] + phase), self._row(q)
        for at, counts in blocks.columns():
            phases = []
            for i, start in enumerate(starts):
                loaded = [
                    code.zeros() if offset is None else code.load(self.address, start + inside + offset)
                    for offset in blocks.offsets(at, counts, i)
                ]
                phases.append(separate(code, loaded))
            for image in range(self.group):
                of_image = [vectors[image] for vectors in phases]
                for j, count in enumerate(counts):
                    if count > 0:
                        images.store(_merge(code, of_image, j), image, place + (at + j * code.lanes), count)

    def _row(self, q: Int) -> Int:
        return (q - self.origin) * self.layout.pitch


class _Blocks:
    """How the rows of images are cut into blocks of whole vectors."""

    def __init__(self, planes: Planes, images: Images) -> None:
        self.lanes, self.group, self.stride = planes.code.lanes, planes.group, planes.strides[1]
        self.width, self.pitch = images.width, planes.layout.pitch
        together = self.lanes // self.width if self.lanes % self.width == 0 else 1
        whole = planes.strides == (1, 1) and planes.known_rows(images.height, 0) == (0, images.height)
        # Short rows are read several at a time, if no vector of the result then holds two of them.
        fits = images.height % together == 0 and self.width * self.group % self.lanes == 0
        self.rows = together if whole and fits else 1

    def columns(self) -> list[tuple[int, list[int]]]:
        """For each block: its first column, and how many numbers of each of its `stride` vectors there are."""
        if self.rows > 1:
            return [(0, [self.lanes])]
        return [
            (at, [min(self.lanes, self.width - at - j * self.lanes) for j in range(self.stride)])
            for at in range(0, self.width, self.stride * self.lanes)
        ]

    def offsets(self, at: int, counts: list[int], phase: int) -> list[int | None]:
        """Where each of the block's interleaved vectors of a phase stands in the plane; None: it holds nothing."""
        starts = range(0, self.group * self.lanes, self.lanes)
        if self.rows > 1:
            places = (divmod(start, self.width * self.group) for start in starts)
            return [row * self.pitch + column for row, column in places]
        there = phase_size(sum(max(0, count) for count in counts), self.stride, phase) * self.group
        return [at // self.stride * self.group + start if start < there else None for start in starts]


def _phase(code: Code, vectors: Sequence[ir.Value], phase: int) -> ir.Value:
    """Each stride-th lane of all the vectors, from lane `phase` on."""
    stride = len(vectors)
    return _pick(code, vectors, [divmod(phase + stride * lane, code.lanes) for lane in range(code.lanes)])


def _merge(code: Code, phases: Sequence[ir.Value], number: int) -> ir.Value:
    """The inverse of `_phase` over all phases: vector `number` of the row."""
    stride = len(phases)
    flat = range(number * code.lanes, (number + 1) * code.lanes)
    return _pick(code, phases, [(place % stride, place // stride) for place in flat])


def _pick(code: Code, vectors: Sequence[ir.Value], wanted: Sequence[tuple[int, int]]) -> ir.Value:
    """The vector of those (vector, lane)."""
    if len(vectors) == 1:
        return vectors[0]
    picked = vectors[0]
    places = [lane if vector == 0 else 0 for vector, lane in wanted]
    for number, other in enumerate(vectors[1:], 1):
        mixed = [code.lanes + lane if vector == number else place for place, (vector, lane) in zip(places, wanted)]
        picked, places = code.shuffle(picked, other, mixed), list(range(code.lanes))
    return picked
