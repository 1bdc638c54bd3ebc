"""From a mask to the index arrays of the CPU kernels, in two passes over it: a counting sort, no comparison.

Both directions are cut into blocks, so that the activations that a block gathers stay in cache:

    forward    blocks of input features;  in each, rows of the weight with their columns
    backward   blocks of output features; in each, columns of the weight with their rows

Values are kept in the backward's order, in which their gradient is written in sequence; `order` leads from the
forward's place of a weight to its place there. All arrays are int32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from llvmlite import ir
from torch import Tensor

from sparseflow_kernels.cpu_ir import Code, Int
from sparseflow_kernels.cpu_jit import Kernel, kernel
from sparseflow_kernels.cpu_target import Target, host


@dataclass(frozen=True, eq=False)
class Structure:
    """Index arrays of one (O, I) mask with Z kept weights, F forward blocks and B backward blocks."""

    # (F, O + 1), (Z,), (Z,)
    row_pointers: Tensor
    columns: Tensor
    order: Tensor
    # (B, I + 1), (Z,)
    column_pointers: Tensor
    rows: Tensor
    # Prefix sums over whole rows and columns, for equal shares: (O + 1,), (I + 1,)
    row_work: Tensor
    column_work: Tensor

    @property
    def nnz(self) -> int:
        return self.rows.shape[0]

    @property
    def outputs(self) -> int:
        return self.row_work.shape[0] - 1

    @property
    def inputs(self) -> int:
        return self.column_work.shape[0] - 1


def structure(mask: Tensor, forward_block: int, backward_block: int) -> Structure:
    """The index arrays of a bool (O, I) mask on the CPU; blocks in features. About 10 ms a million kept weights."""
    outputs, inputs = mask.shape
    flat = mask.contiguous()
    forward_blocks, backward_blocks = -(-inputs // forward_block), -(-outputs // backward_block)
    by_row = torch.zeros(forward_blocks * outputs + 1, dtype=torch.int32, device="cpu")
    by_column = torch.zeros(backward_blocks * inputs + 1, dtype=torch.int32, device="cpu")
    sizes = (outputs, inputs, forward_block, backward_block)
    counting, placing = _kernels(host())
    counting(1, flat.data_ptr(), *sizes, by_row.data_ptr(), by_column.data_ptr())
    row_starts, column_starts = _starts(by_row), _starts(by_column)
    nnz = int(row_starts[-1])
    columns, order, rows = (torch.empty(nnz, dtype=torch.int32, device="cpu") for _ in range(3))
    # Placing moves each start on by the number of weights placed.
    row_next, column_next = row_starts.clone(), column_starts.clone()
    arrays = (row_next, column_next, columns, order, rows)
    placing(1, flat.data_ptr(), *sizes, *(array.data_ptr() for array in arrays))
    return Structure(
        row_pointers=_pointers(row_starts, forward_blocks),
        columns=columns,
        order=order,
        column_pointers=_pointers(column_starts, backward_blocks),
        rows=rows,
        row_work=_work(by_row, forward_blocks),
        column_work=_work(by_column, backward_blocks),
    )


def _starts(counts: Tensor) -> Tensor:
    """Counts with one more place at the end → where each begins, and at the end how many there are."""
    starts = torch.zeros_like(counts)
    starts[1:] = counts[:-1].cumsum(0)
    return starts


def _pointers(starts: Tensor, blocks: int) -> Tensor:
    """(blocks, n + 1): each row ends where the next block begins."""
    each = starts[:-1].view(blocks, -1)
    return torch.cat([each, starts[each.shape[1] :: each.shape[1]].unsqueeze(1)], 1).contiguous()


def _work(counts: Tensor, blocks: int) -> Tensor:
    return _starts(torch.cat([counts[:-1].view(blocks, -1).sum(0, dtype=torch.int32), counts[-1:]]))


# (row, column, the column's forward block)
_Visit = Callable[[Int, Int, Int], None]


@functools.cache
def _kernels(target: Target) -> tuple[Kernel, Kernel]:
    return kernel(target, 7, _write_counting), kernel(target, 10, _write_placing)


def _write_counting(code: Code, arguments: list[Int], thread: Int, threads: Int) -> None:
    mask, outputs, inputs, forward_block, backward_block, by_row, by_column = arguments

    def kept(row: Int, column: Int, block: Int) -> None:
        places = ((by_row, block * outputs + row), (by_column, row // backward_block * inputs + column))
        for counts, place in places:
            code.store_int32(code.load_int32(counts, place) + 1, counts, place)

    _each_kept(code, mask, outputs, inputs, forward_block, kept)


def _write_placing(code: Code, arguments: list[Int], thread: Int, threads: Int) -> None:
    mask, outputs, inputs, forward_block, backward_block, *arrays = arguments
    row_next, column_next, columns, order, rows = arrays

    def take(nexts: Int, place: Int) -> Int:
        found = code.load_int32(nexts, place)
        code.store_int32(found + 1, nexts, place)
        return found

    def kept(row: Int, column: Int, block: Int) -> None:
        forward = take(row_next, block * outputs + row)
        backward = take(column_next, row // backward_block * inputs + column)
        code.store_int32(column, columns, forward)
        code.store_int32(backward, order, forward)
        code.store_int32(row, rows, backward)

    _each_kept(code, mask, outputs, inputs, forward_block, kept)


def _each_kept(code: Code, mask: Int, outputs: Int, inputs: Int, block: Int, kept: _Visit) -> None:
    """Calls kept(row, column, column's block) in row-major order. Bytes of a bool tensor are 0 or 1."""

    def row(r: Int) -> None:
        start = r * inputs

        def columns(c: Int) -> None:
            last, number = (c + block).min(inputs), c // block
            whole = last - (last - c) % 8

            def word(i: Int) -> None:
                _each_bit(code, code.load_int(mask + start + i, 0), lambda byte: kept(r, i + byte, number))

            def byte(i: Int) -> None:
                with code.when(code.load_byte(mask, start + i) >= 1):
                    kept(r, i, number)

            code.loop(c, whole, word, step=8)
            code.loop(whole, last, byte)

        code.loop(0, inputs, columns, step=block)

    code.loop(0, outputs, row)


def _each_bit(code: Code, word: Int, visit: Callable[[Int], None]) -> None:
    """Calls visit(byte) for each byte of the word that is 1."""
    builder = code.builder
    count = Int(code, builder.ctpop(word.value))

    def step(_: Int, left: ir.Value) -> list[ir.Value]:
        visit(Int(code, builder.cttz(left, ir.Constant(ir.IntType(1), 0))) // 8)
        return [builder.and_(left, builder.sub(left, code.raw(1)))]

    code.loop(0, count, step, [word.value])
