"""The backward kernel of sparse linear layers: dX, dW and the bias gradient from one pass over dY.

It walks the columns of the weight: x[c] and dx[c] stay in registers while every row of dY that is loaded feeds two
multiply-adds. Each thread owns columns, so that nothing is reduced between threads.
"""

from __future__ import annotations

import functools
from typing import Generic, NamedTuple, TypeVar

from llvmlite import ir

from sparseflow_kernels.cpu_copies import Matrix
from sparseflow_kernels.cpu_ir import Code, Index, Int, Module
from sparseflow_kernels.cpu_jit import Kernel, barrier, function, kernel
from sparseflow_kernels.cpu_target import Target
from sparseflow_kernels.cpu_tiles import Products, balanced_share, share, sums_and_products

T = TypeVar("T")


class Backward(NamedTuple, Generic[T]):
    """What the kernel is called with: addresses, strides and sizes in elements; g is dY and d is dX.

    `y` is the output of the ReLU, where there was one: g counts where y is above 0.
    `pack`, `unpack`, `full_tile`, `last_tile`: addresses of functions, the last two for tiles of their sizes.
    The tiles are offsets in bytes from `scratch`, and hold `width` rows.
    `*_ready`: 1 where a matrix is feature-major float32, and may be gathered from or stored to where it is.
    """

    g: T
    g_row: T
    g_feature: T
    g_ready: T
    y: T
    y_row: T
    y_feature: T
    x: T
    x_row: T
    x_feature: T
    x_ready: T
    d: T
    d_row: T
    d_feature: T
    d_ready: T
    weights: T
    products: T
    rows_of: T
    pointers: T
    work: T
    blocks: T
    bias_sums: T
    rows: T
    inputs: T
    outputs: T
    g_tile: T
    x_tile: T
    d_tile: T
    scratch: T
    width: T
    pack: T
    unpack: T
    full_tile: T
    last_tile: T

    def all(self) -> list[T]:
        return list(self)


class _Columns(NamedTuple, Generic[T]):
    """What the columns of the weight are multiplied with: one tile."""

    g: T
    stride: T
    x: T
    x_stride: T
    d: T
    d_stride: T
    partial: T
    rows_of: T
    weights: T
    products: T
    pointers: T
    blocks: T
    inputs: T
    rows: T
    width: T
    first: T
    last: T
    later: T

    def all(self) -> list[T]:
        return list(self)


@functools.cache
def backward_kernel(target: Target) -> Kernel:
    """The kernel; called with a `Backward`."""
    return kernel(target, len(Backward._fields), _write)


@functools.cache
def columns_function(target: Target, vectors: int, need_dx: bool) -> int:
    """Address of the function that walks columns of the weight over one tile of so many vectors."""
    module = Module(target)
    code = module.function("columns", _Columns._fields)
    _write_columns(code, _Columns(*code.arguments), vectors, need_dx)
    code.finish()
    return function(module, "columns")


def _write(code: Code, arguments: list[Int], thread: Int, threads: Int) -> None:
    a = Backward(*arguments)
    a = a._replace(g_tile=a.scratch + a.g_tile, x_tile=a.scratch + a.x_tile, d_tile=a.scratch + a.d_tile)
    width = a.width
    first, last = balanced_share(code, a.work, a.inputs, thread, threads)
    pack_first, pack_last = share(code, a.outputs, thread, threads, code.lanes)
    g_ready, x_ready, d_ready = a.g_ready >= 1, a.x_ready >= 1, a.d_ready >= 1

    def tile(row: Int) -> None:
        rows = (a.rows - row).min(width)
        later = row.min(1)
        with code.choice(g_ready) as (ready, copied):
            with ready:
                _feature_sums(Matrix(code, a.g, a.g_row, a.g_feature), row, rows, pack_first, pack_last, a.bias_sums)
            with copied:
                y = [a.y, a.y_row, a.y_feature]
                where = [row, rows, pack_first, pack_last, a.g_tile, width]
                code.call_address(a.pack, a.g, a.g_row, a.g_feature, *y, a.bias_sums, later, *where)
        with code.when(a.x_ready.equals(0)):
            nothing = [0] * 5
            code.call_address(a.pack, a.x, a.x_row, a.x_feature, *nothing, row, rows, first, last, a.x_tile, width)
        with code.when(a.g_ready.equals(0)):
            barrier(code, threads)
        columns: _Columns[Index] = _Columns(
            g=code.either(g_ready, a.g + row * 4, a.g_tile),
            stride=code.either(g_ready, a.g_feature, width),
            x=code.either(x_ready, a.x + row * 4, a.x_tile),
            x_stride=code.either(x_ready, a.x_feature, width),
            d=code.either(d_ready, a.d + row * 4, a.d_tile),
            d_stride=code.either(d_ready, a.d_feature, width),
            partial=a.d_tile,
            rows_of=a.rows_of,
            weights=a.weights,
            products=a.products,
            pointers=a.pointers,
            blocks=a.blocks,
            inputs=a.inputs,
            rows=rows,
            width=width,
            first=first,
            last=last,
            later=later,
        )
        code.call_address(code.either(row + width < a.rows, a.full_tile, a.last_tile), *columns.all())
        with code.when(code.builder.and_(a.d >= 1, a.d_ready.equals(0))):
            code.call_address(a.unpack, a.d_tile, width, a.d, a.d_row, a.d_feature, row, rows, first, last)
        # Nobody may overwrite the tile of g while somebody still reads it.
        with code.when(code.builder.and_(a.g_ready.equals(0), row + width < a.rows)):
            barrier(code, threads)

    code.loop(0, a.rows, tile, step=width)


def _feature_sums(g: Matrix, row: Int, rows: Int, first: Int, last: Int, sums: Int) -> None:
    """The sum of each feature over the tile's rows, of a feature-major matrix."""
    code = g.code

    def feature(f: Int) -> None:
        def vector(i: Int, total: ir.Value) -> list[ir.Value]:
            return [code.add(total, g.load(row + i, f, code.first_lanes(rows - i)))]

        (total,) = code.loop(0, rows, vector, [code.zeros()], step=code.lanes)
        code.add_float(code.sum(total), sums, f, row >= 1)

    with code.when(sums >= 1):
        code.loop(first, last, feature)


def _write_columns(code: Code, a: _Columns[Int], count: int, need_dx: bool) -> None:
    """The columns [first, last) of the weight, on one tile of `count` vectors."""
    lanes, width = code.lanes, a.width
    places = [j * lanes for j in range(count)]
    tail = code.first_lanes(a.rows - (count - 1) * lanes)
    masks = [None] * (count - 1) + [tail]
    nothing, buffer = code.buffer(1), code.buffer(lanes)
    code.store(code.zeros(), nothing, 0)

    def block(b: Int) -> None:
        pointers = a.pointers + b * (a.inputs + 1) * 4
        begins, ends = b.equals(0), (b + 1).equals(a.blocks)
        before = code.either(begins, nothing, a.partial)
        before_stride = code.either(begins, 0, width)
        after = code.either(ends, a.d, a.partial)
        after_stride = code.either(ends, a.d_stride, width)
        products = Products(code, buffer, a.products, code.load_int32(pointers, a.first), a.later)

        def column(c: Int) -> None:
            x = [code.load(a.x, a.x_stride * c + place, mask=mask) for place, mask in zip(places, masks)]
            start = [
                code.load(before, before_stride * c + code.either(begins, 0, place)) for place in places if need_dx
            ]
            found = sums_and_products(
                code,
                a.g,
                places,
                a.rows_of,
                a.weights,
                code.load_int32(pointers, c),
                code.load_int32(pointers, c + 1),
                start,
                a.stride,
                x,
                products,
            )
            for value, place, mask in zip(found, places, masks):
                code.store(value, after, after_stride * c + place, mask=mask)

        code.loop(a.first, a.last, column)
        products.finish(code.load_int32(pointers, a.last))

    code.loop(0, a.blocks, block)
