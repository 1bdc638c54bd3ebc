"""The forward kernel of sparse linear layers: y = relu(x Wᵀ + b), a gather-SpMM over rows of the weight.

Batch rows are taken `8 * lanes` at a time. A tile of x stands feature-major in scratch memory, or is read where it is
if the tensor is feature-major already. Each thread owns rows of the weight.
"""

from __future__ import annotations

import functools
from typing import Generic, NamedTuple, TypeVar

from sparseflow_kernels.cpu_ir import Code, Index, Int, Module
from sparseflow_kernels.cpu_jit import Kernel, barrier, function, kernel
from sparseflow_kernels.cpu_target import Target
from sparseflow_kernels.cpu_tiles import balanced_share, gather_weights, share, weighted_sums

T = TypeVar("T")


class Forward(NamedTuple, Generic[T]):
    """What the kernel is called with: addresses, strides and sizes in elements.

    `pack`, `unpack`, `full_tile`, `last_tile`: addresses of functions, the last two for tiles of their sizes.
    The tiles are offsets in bytes from `scratch`, and hold `width` rows.
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
    scratch: T
    width: T
    pack: T
    unpack: T
    full_tile: T
    last_tile: T

    def all(self) -> list[T]:
        return list(self)


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
    width: T
    first: T
    last: T

    def all(self) -> list[T]:
        return list(self)


@functools.cache
def forward_kernel(target: Target) -> Kernel:
    """The kernel; called with a `Forward`."""
    return kernel(target, len(Forward._fields), _write)


@functools.cache
def rows_function(target: Target, vectors: int) -> int:
    """Address of the function that multiplies rows of the weight with one tile of so many vectors."""
    module = Module(target)
    code = module.function("rows", _Rows._fields)
    _write_rows(code, _Rows(*code.arguments), vectors)
    code.finish()
    return function(module, "rows")


def _write(code: Code, arguments: list[Int], thread: Int, threads: Int) -> None:
    a = Forward(*arguments)
    a = a._replace(x_tile=a.scratch + a.x_tile, y_tile=a.scratch + a.y_tile, gathered=a.scratch + a.gathered)
    width = a.width
    first, last = balanced_share(code, a.work, a.outputs, thread, threads)
    pack_first, pack_last = share(code, a.inputs, thread, threads, code.lanes)
    _gather_weights(code, a, first, last)
    x_ready, y_ready = a.x_ready >= 1, a.y_ready >= 1

    def tile(row: Int) -> None:
        rows = (a.rows - row).min(width)
        with code.when(a.x_ready.equals(0)):
            nothing = [0] * 5
            where = [row, rows, pack_first, pack_last, a.x_tile, width]
            code.call_address(a.pack, a.x, a.x_row, a.x_feature, *nothing, *where)
            barrier(code, threads)
        rows_call: _Rows[Index] = _Rows(
            x=code.either(x_ready, a.x + row * 4, a.x_tile),
            stride=code.either(x_ready, a.x_feature, width),
            y=code.either(y_ready, a.y + row * 4, a.y_tile),
            y_stride=code.either(y_ready, a.y_feature, width),
            partial=a.y_tile,
            columns=a.columns,
            weights=a.gathered,
            pointers=a.pointers,
            blocks=a.blocks,
            outputs=a.outputs,
            bias=a.bias,
            relu=a.relu,
            rows=rows,
            width=width,
            first=first,
            last=last,
        )
        code.call_address(code.either(row + width < a.rows, a.full_tile, a.last_tile), *rows_call.all())
        with code.when(a.y_ready.equals(0)):
            code.call_address(a.unpack, a.y_tile, width, a.y, a.y_row, a.y_feature, row, rows, first, last)
        # Nobody may overwrite the tile of x while somebody still reads it.
        with code.when(code.builder.and_(a.x_ready.equals(0), row + width < a.rows)):
            barrier(code, threads)

    code.loop(0, a.rows, tile, step=width)


def _gather_weights(code: Code, a: Forward[Int], first: Int, last: Int) -> None:
    """The kept weights of this thread's rows, from the order of the backward into that of the forward."""

    def block(b: Int) -> None:
        pointers = a.pointers + b * (a.outputs + 1) * 4
        first_k, last_k = code.load_int32(pointers, first), code.load_int32(pointers, last)
        gather_weights(code, a.weights, a.order, a.gathered, first_k, last_k)

    code.loop(0, a.blocks, block)


def _write_rows(code: Code, a: _Rows[Int], count: int) -> None:
    """The rows [first, last) of the weight, on one tile of `count` vectors."""
    lanes, width = code.lanes, a.width
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
