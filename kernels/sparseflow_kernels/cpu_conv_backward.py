"""The fused backward kernel of a sparse convolution: dx, dvalues and dbias in one pass over dy.

As in the forward, one thread copies a strip, computes it and copies dx back; tiles run over all phases of the input
channels. Gradients of values and biases are summed by each thread, and then, in the order of the threads, over all:
they are the same whenever the number of threads is.
"""

from __future__ import annotations

import functools
from typing import Generic, NamedTuple, TypeVar

from llvmlite import ir

from sparseflow_kernels.cpu_conv_geometry import Geometry
from sparseflow_kernels.cpu_conv_pack import Images, Planes, Sums
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
from sparseflow_kernels.cpu_tiles import Products, share, sums_and_products

T = TypeVar("T")


class ConvBackward(NamedTuple, Generic[T]):
    """What the kernel is called with: addresses and sizes.

    `room`: floats of scratch memory for each thread; `own_sums`: floats that each thread's sums take behind them all,
    first those of the values, then those of the biases from `bias_place` on. `y`, `dbias`: 0 where there is none.
    """

    dy: T
    x: T
    y: T
    dx: T
    values: T
    dvalues: T
    dbias: T
    scratch: T
    room: T
    own_sums: T
    bias_place: T
    offsets: T
    pointers: T
    blocks: T
    images: T
    channels: T
    outputs: T
    nnz: T

    def all(self) -> list[T]:
        return list(self)


class _Planes(NamedTuple, Generic[T]):
    """What all phases of the input channels are computed from, on one tile."""

    dy: T
    x: T
    dx: T
    partial: T
    offsets: T
    weights: T
    pointers: T
    blocks: T
    products: T
    planes: T

    def all(self) -> list[T]:
        return list(self)


@functools.lru_cache(maxsize=64)
def backward_kernel(variant: Variant) -> Kernel:
    """The kernel; called with a `ConvBackward`. Its scratch memory: threads * (room + own_sums) floats."""
    write, declare = functools.partial(_write, variant), functools.partial(_declare, variant)
    return kernel(variant.target, len(ConvBackward._fields), write, declare)


def backward_room(geometry: Geometry, channels: int, outputs: int) -> int:
    """Floats of scratch memory that each thread needs, its sums aside."""
    planes = channels * geometry.phases
    own = 0 if geometry.x_in_place else 2 * planes * geometry.plain_x.size
    return outputs * geometry.padded_dy.size + own + planes * geometry.backward_tile.size * geometry.lanes


def _write(variant: Variant, code: Code, arguments: list[Int], thread: Int, threads: Int) -> None:
    a = ConvBackward(*arguments)
    sums = a.scratch + (threads * a.room + thread * a.own_sums) * 4
    clear(code, sums, a.own_sums)
    _write_units(variant, code, a, sums, thread, threads)
    barrier(code, threads)
    _add_up(code, a, a.dvalues, code.number(0), a.nnz, thread, threads)
    with code.when(a.dbias >= 1):
        _add_up(code, a, a.dbias, a.bias_place, a.outputs, thread, threads)


def _write_units(variant: Variant, code: Code, a: ConvBackward[Int], sums: Int, thread: Int, threads: Int) -> None:
    geometry = variant.geometry
    padded, plain = geometry.padded_dy, geometry.plain_x
    planes = a.channels * geometry.phases
    gathered = a.scratch + thread * a.room * 4
    own_x = gathered + a.outputs * (padded.size * 4)
    own_dx = own_x if geometry.x_in_place else own_x + planes * (plain.size * 4)
    partial = own_dx if geometry.x_in_place else own_dx + planes * (plain.size * 4)
    # Numbers behind the end of a row are multiplied as well: they have to be zeros.
    clear(code, gathered, (own_dx - gathered) // 4)

    def unit(first: Int, live: Int, start: Index, end: Int) -> None:
        def images(address: Int, channels: Int, size: tuple[int, int]) -> Images:
            return Images(code, address, channels, size, variant.storage, first, live)

        dy = images(a.dy, a.outputs, geometry.outside)
        # Without a ReLU dy is read twice, which costs less than to compile the copy twice.
        positive = images(code.either(a.y.equals(0), a.dy, a.y), a.outputs, geometry.outside)
        last = code.either(end >= geometry.rows.cells, geometry.rows.out, end)
        bias = Sums(sums + a.bias_place * 4, code.number(start), last)
        high = start - geometry.rows.high
        Planes(code, geometry.group, (1, 1), gathered, padded, high).pack(dy, positive, a.y.equals(0), bias)
        x, dx = images(a.x, a.channels, geometry.inside), images(a.dx, a.channels, geometry.inside)
        source, target, pitch, size = own_x, own_dx, plain.pitch, 4
        if geometry.x_in_place:
            pitch, size = x.width, x.bytes
            source, target = (there.address + start * (pitch * size) for there in (x, dx))
        else:
            Planes(code, geometry.group, geometry.strides, own_x, plain, start).pack(x)

        def tile(name: str, row: Int, vector: int) -> None:
            place = row * (pitch * size) + vector * code.lanes * size
            on_tile: _Planes[Index] = _Planes(
                dy=gathered + row * (padded.pitch * 4) + vector * code.lanes * 4,
                x=source + place,
                dx=target + place,
                partial=partial,
                offsets=a.offsets,
                weights=a.values,
                pointers=a.pointers,
                blocks=a.blocks,
                products=sums,
                planes=planes,
            )
            code.call(name, *on_tile.all())

        rows, vectors, masked = geometry.rows.cells, geometry.x_vectors, geometry.x_rest > 0
        each_tile(code, geometry.backward_tile, rows, vectors, masked, end - start, tile)
        if variant.need_dx and not geometry.x_in_place:
            Planes(code, geometry.group, geometry.strides, own_dx, plain, start).unpack(dx)

    each_unit(code, geometry, a.images, geometry.rows.cells, geometry.backward_strip, thread, threads, unit)


def _add_up(code: Code, a: ConvBackward[Int], target: Int, place: Int, count: Int, thread: Int, threads: Int) -> None:
    """target[i] = sum over all threads of their sums[place + i]."""
    first, last = share(code, count, thread, threads, code.lanes)
    sums = a.scratch + threads * a.room * 4

    def vector(i: Int) -> None:
        mask = code.first_lanes(last - i)

        def add(t: Int, total: ir.Value) -> list[ir.Value]:
            return [code.add(total, code.load(sums, t * a.own_sums + place + i, mask=mask))]

        (total,) = code.loop(0, threads, add, [code.zeros()])
        code.store(total, target, i, mask=mask)

    code.loop(first, last, vector, step=code.lanes)


def _declare(variant: Variant, module: Module) -> None:
    geometry = variant.geometry
    for shape in shapes(geometry.backward_tile, geometry.rows.cells, geometry.x_vectors, geometry.x_rest > 0):
        code = module.function(shape.name, _Planes._fields, inner=True)
        _write_planes(variant, code, _Planes(*code.arguments), shape)
        code.finish()


def _write_planes(variant: Variant, code: Code, a: _Planes[Int], shape: Shape) -> None:
    geometry, lanes, grid = variant.geometry, code.lanes, shape.grid
    places = [i * geometry.padded_dy.pitch + j * lanes for i, j in grid]
    masks = shape.masks(code, geometry.x_rest)
    storage: Storage = "f32"
    pitch, stride = geometry.plain_x.pitch, geometry.plain_x.size
    if geometry.x_in_place:
        storage, pitch, stride = variant.storage, geometry.columns.size, geometry.rows.size * geometry.columns.size
    zeros = code.buffer(1)
    code.store(code.zeros(), zeros, 0)
    products = Products(code, code.buffer(lanes), a.products, code.number(0), code.number(1))

    def plane(partial: Partial, number: Int, p: Int) -> None:
        begin, end = code.load_int32(a.pointers, number), code.load_int32(a.pointers, number + 1)
        own = [p * stride + (i * pitch + j * lanes) for i, j in grid]
        x = [code.load(a.x, place, storage, mask) for place, mask in zip(own, masks)]
        start = partial.load(p, zeros) if variant.need_dx else []
        sums = sums_and_products(code, a.dy, places, a.offsets, a.weights, begin, end, start, 1, x, products)
        with partial.finish(p, sums):
            for value, place, mask in zip(sums, own, masks):
                code.store(value, a.dx, place, storage, mask)

    each_list(code, variant.blocked, a.blocks, a.planes, a.partial, len(grid), plane)
    products.finish(code.load_int32(a.pointers, a.blocks * a.planes))
