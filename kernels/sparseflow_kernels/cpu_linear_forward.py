"""The forward kernel of sparse linear layers: y = relu(x Wᵀ + b), a gather-SpMM over rows of the weight.

Batch rows are taken `8 * lanes` at a time. A tile of x stands feature-major in scratch memory, or is read where it is
if the tensor is feature-major already. Each thread owns rows of the weight.
"""

from __future__ import annotations

import functools
from typing import Generic, NamedTuple, TypeVar

from sparseflow_kernels.cpu_copies import Matrix, pack, unpack
from sparseflow_kernels.cpu_ir import Code, Int, Module, Storage
from sparseflow_kernels.cpu_jit import Kernel, barrier, kernel
from sparseflow_kernels.cpu_target import Target
from sparseflow_kernels.cpu_tiles import VECTORS, balanced_share, call_tile, share, tile_sizes, weighted_sums

T = TypeVar("T")


class Forward(NamedTuple, Generic[T]):
    """What the kernel is called with: addresses, strides and sizes in elements.

    `*_ready`: 1 where a matrix is feature-major float32, and may be gathered from or stored to where it is.
    """

    x: T
    x_row: T
    x_feature: T
    x_ready: T
    y: T
    y_row: T
    y_feature: T
    y_ready: T
    weights: T
    order: T
    columns: T
    pointers: T
    work: T
    blocks: T
    bias: T
    relu: T
    rows: T
    inputs: T
    outputs: T
    x_tile: T
    y_tile: T
    gathered: T


class _Rows(NamedTuple, Generic[T]):
    """What the rows of the weight are multiplied with: one tile."""

    x: T
    stride: T
    y: T
    y_stride: T
    partial: T
    columns: T
    weights: T
    pointers: T
    blocks: T
    outputs: T
    bias: T
    relu: T
    rows: T
    first: T
    last: T


@functools.cache
def forward_kernel(target: Target, rows: int, storage: Storage) -> Kernel:
    """The kernel for batches of the class of `rows` (see `batch_class`); called with a `Forward`."""
    sizes = tile_sizes(target, rows)
    declare = functools.partial(_declare, sizes=sizes)
    return kernel(target, len(Forward._fields), functools.partial(_write, storage, sizes), declare)


def _write(storage: Storage, sizes: set[int], code: Code, arguments: list[Int], thread: Int, threads: Int) -> None:
    a = Forward(*arguments)
    width = VECTORS * code.lanes
    x = Matrix(code, a.x, a.x_row, a.x_feature, storage)
    y = Matrix(code, a.y, a.y_row, a.y_feature, storage)
    first, last = balanced_share(code, a.work, a.outputs, thread, threads)
    pack_first, pack_last = share(code, a.inputs, thread, threads, code.lanes)
    _gather_weights(code, a, first, last)

    def tile(row: Int) -> None:
        rows = (a.rows - row).min(width)
        with code.when(a.x_ready.equals(0)):
            pack(x, row, rows, pack_first, pack_last, a.x_tile)
        barrier(code, threads)
        in_place = a.x_ready >= 1
        source = code.either(in_place, a.x + row * 4, a.x_tile)
        stride = code.either(in_place, a.x_feature, width)
        out_in_place = a.y_ready >= 1
        target = code.either(out_in_place, a.y + row * 4, a.y_tile)
        target_stride = code.either(out_in_place, a.y_feature, width)
        common = [source, stride, target, target_stride, a.y_tile, a.columns, a.gathered, a.pointers]
        last_ones = [a.blocks, a.outputs, a.bias, a.relu, rows, first, last]
        call_tile(code, "rows", sizes, rows, [*common, *last_ones])
        with code.when(a.y_ready.equals(0)):
            unpack(a.y_tile, y, row, rows, first, last)
        # Nobody may overwrite the tile of x while somebody still reads it.
        barrier(code, threads)

    code.loop(0, a.rows, tile, step=width)


def _gather_weights(code: Code, a: Forward[Int], first: Int, last: Int) -> None:
    """The kept weights of this thread's rows, from the order of the backward into that of the forward."""

    def block(b: Int) -> None:
        pointers = a.pointers + b * (a.outputs + 1) * 4

        def weight(k: Int) -> None:
            code.store_float(code.load_float(a.weights, code.load_int32(a.order, k)), a.gathered, k)

        code.loop(code.load_int32(pointers, first), code.load_int32(pointers, last), weight)

    code.loop(0, a.blocks, block)


def _declare(module: Module, sizes: set[int]) -> None:
    for count in sizes:
        code = module.function(f"rows{count}", _Rows._fields, inner=True)
        _write_rows(code, _Rows(*code.arguments), count)
        code.finish()


def _write_rows(code: Code, a: _Rows[Int], count: int) -> None:
    """The rows [first, last) of the weight, on one tile of `count` vectors."""
    lanes, width = code.lanes, VECTORS * code.lanes
    places = [j * lanes for j in range(count)]
    tail = code.first_lanes(a.rows - (count - 1) * lanes)
    nothing = code.buffer(1)
    code.store(code.zeros(), nothing, 0)

    def block(b: Int) -> None:
        pointers = a.pointers + b * (a.outputs + 1) * 4
        begins, ends = b.equals(0), (b + 1).equals(a.blocks)
        has_bias = code.builder.and_(begins, a.bias >= 1)
        before = code.either(begins, nothing, a.partial)
        before_stride = code.either(begins, 0, width)
        after = code.either(ends, a.y, a.partial)
        after_stride = code.either(ends, a.y_stride, width)
        bound = code.builder.and_(ends, a.relu >= 1)

        def row(r: Int) -> None:
            bias = code.splat(code.load_float(code.either(has_bias, a.bias + r * 4, nothing), 0))
            start = [
                code.add(bias, code.load(before, before_stride * r + code.either(begins, 0, place))) for place in places
            ]
            found = weighted_sums(
                code,
                a.x,
                places,
                a.columns,
                a.weights,
                code.load_int32(pointers, r),
                code.load_int32(pointers, r + 1),
                start,
                a.stride,
            )
            for j, value in enumerate(found):
                value = code.builder.select(bound, code.relu(value), value)
                code.store(value, after, after_stride * r + places[j], mask=tail if j == count - 1 else None)

        code.loop(a.first, a.last, row)

    code.loop(0, a.blocks, block)
