"""The forward kernel of a sparse convolution: y = relu(conv(x, w) + b).

A strip of rows of a group of images is copied into padded planes (`cpu_conv_pack`), computed and copied back by one
thread, so that its planes stay in that core's cache. In it, tiles of a few vectors run over all output channels.
"""

from __future__ import annotations

import functools
from typing import Generic, NamedTuple, TypeVar

from sparseflow_kernels.cpu_conv_geometry import Geometry
from sparseflow_kernels.cpu_conv_pack import Images, Planes
from sparseflow_kernels.cpu_conv_tiles import (
    Partial,
    Shape,
    Variant,
    clear,
    each_list,
    each_tile,
    each_unit,
    shapes,
)
from sparseflow_kernels.cpu_ir import Code, Index, Int, Module, Storage
from sparseflow_kernels.cpu_jit import Kernel, barrier, kernel
from sparseflow_kernels.cpu_tiles import gather_weights, share, weighted_sums

T = TypeVar("T")


class ConvForward(NamedTuple, Generic[T]):
    """What the kernel is called with: addresses and sizes. `room`: floats of scratch memory for each thread.

    No bias: 0. `relu`: 1 or 0.
    """

    x: T
    y: T
    values: T
    bias: T
    relu: T
    scratch: T
    room: T
    order: T
    offsets: T
    pointers: T
    blocks: T
    images: T
    channels: T
    outputs: T
    nnz: T

    def all(self) -> list[T]:
        return list(self)


class _Outputs(NamedTuple, Generic[T]):
    """What all output channels are computed from, on one tile."""

    x: T
    y: T
    partial: T
    offsets: T
    weights: T
    pointers: T
    blocks: T
    bias: T
    relu: T
    outputs: T

    def all(self) -> list[T]:
        return list(self)


@functools.lru_cache(maxsize=64)
def forward_kernel(variant: Variant) -> Kernel:
    """The kernel; called with a `ConvForward`. Its scratch memory: threads * room + nnz floats."""
    write, declare = functools.partial(_write, variant), functools.partial(_declare, variant)
    return kernel(variant.target, len(ConvForward._fields), write, declare)


def forward_room(geometry: Geometry, channels: int, outputs: int) -> int:
    """Floats of scratch memory that each thread needs."""
    return sum(_rooms(geometry, channels, outputs))


def _rooms(geometry: Geometry, channels: int, outputs: int) -> tuple[int, int, int]:
    """Floats of the padded planes of x, of y, and of partial sums."""
    y = 0 if geometry.y_in_place else outputs * geometry.plain_y.size
    partial = outputs * geometry.forward_tile.size * geometry.lanes
    return channels * geometry.phases * geometry.padded_x.size, y, partial


def _write(variant: Variant, code: Code, arguments: list[Int], thread: Int, threads: Int) -> None:
    a, geometry, storage = ConvForward(*arguments), variant.geometry, variant.storage
    padded, plain = geometry.padded_x, geometry.plain_y
    planes = a.scratch + thread * a.room * 4
    planes_size = a.channels * (geometry.phases * padded.size)
    own = planes + planes_size * 4
    partial = own if geometry.y_in_place else own + a.outputs * (plain.size * 4)
    gathered = a.scratch + threads * a.room * 4
    clear(code, planes, planes_size)
    gather_weights(code, a.values, a.order, gathered, *share(code, a.nnz, thread, threads))
    barrier(code, threads)

    def unit(first: Int, live: Int, start: Index, end: Int) -> None:
        x = Images(code, a.x, a.channels, geometry.inside, storage, first, live)
        y = Images(code, a.y, a.outputs, geometry.outside, storage, first, live)
        low = start + geometry.rows.low
        Planes(code, geometry.group, geometry.strides, planes, padded, low).pack(x)
        target, pitch, size = own, plain.pitch, 4
        if geometry.y_in_place:
            target, pitch, size = y.address + start * (y.width * y.bytes), y.width, y.bytes

        def tile(name: str, row: Int, vector: int) -> None:
            outputs: _Outputs[Index] = _Outputs(
                x=planes + row * (padded.pitch * 4) + vector * code.lanes * 4,
                y=target + row * (pitch * size) + vector * code.lanes * size,
                partial=partial,
                offsets=a.offsets,
                weights=gathered,
                pointers=a.pointers,
                blocks=a.blocks,
                bias=a.bias,
                relu=a.relu,
                outputs=a.outputs,
            )
            code.call(name, *outputs.all())

        rows, vectors, masked = geometry.rows.out, geometry.y_vectors, geometry.y_rest > 0
        each_tile(code, geometry.forward_tile, rows, vectors, masked, end - start, tile)
        if not geometry.y_in_place:
            Planes(code, geometry.group, (1, 1), own, plain, start).unpack(y)

    each_unit(code, geometry, a.images, geometry.rows.out, geometry.forward_strip, thread, threads, unit)


def _declare(variant: Variant, module: Module) -> None:
    geometry = variant.geometry
    for shape in shapes(geometry.forward_tile, geometry.rows.out, geometry.y_vectors, geometry.y_rest > 0):
        code = module.function(shape.name, _Outputs._fields, inner=True)
        _write_outputs(variant, code, _Outputs(*code.arguments), shape)
        code.finish()


def _write_outputs(variant: Variant, code: Code, a: _Outputs[Int], shape: Shape) -> None:
    geometry, lanes, grid = variant.geometry, code.lanes, shape.grid
    places = [i * geometry.padded_x.pitch + j * lanes for i, j in grid]
    masks = shape.masks(code, geometry.y_rest)
    storage: Storage = "f32"
    pitch, stride = geometry.plain_y.pitch, geometry.plain_y.size
    if geometry.y_in_place:
        storage, pitch, stride = variant.storage, geometry.columns.out, geometry.rows.out * geometry.columns.out
    zeros = code.buffer(1)
    code.store(code.zeros(), zeros, 0)

    def output(partial: Partial, number: Int, o: Int) -> None:
        begin, end = code.load_int32(a.pointers, number), code.load_int32(a.pointers, number + 1)
        bias = code.load_float(code.either(a.bias >= 1, a.bias + o * 4, zeros), 0)
        before = partial.at_first(code.splat(bias))
        start = [code.add(vector, before) for vector in partial.load(o, zeros)]
        sums = weighted_sums(code, a.x, places, a.offsets, a.weights, begin, end, start, 1)
        with partial.finish(o, sums):
            for (i, j), value, mask in zip(grid, sums, masks):
                value = code.builder.select(a.relu >= 1, code.relu(value), value)
                code.store(value, a.y, o * stride + (i * pitch + j * lanes), storage, mask)

    each_list(code, variant.blocked, a.blocks, a.outputs, a.partial, len(grid), output)
