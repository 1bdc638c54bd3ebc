"""From a mask to the index arrays of the CPU kernels, in one pass over it: a counting sort, no comparison.

Both directions are cut into blocks, so that the activations that a block gathers stay in cache:

    forward    blocks of input features;  in each, rows of the weight with their columns
    backward   blocks of output features; in each, columns of the weight with their rows

Values are kept in the backward's order, in which their gradient is written in sequence; `order` leads from the
forward's place of a weight to its place there. All arrays are int32.
"""

from __future__ import annotations

import functools
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
    nnz = int(flat.count_nonzero())
    listed, columns, order, rows = (torch.empty(nnz + more, dtype=torch.int32, device="cpu") for more in (1, 0, 0, 0))
    listing, placing, _ = _kernels(host())
    sizes = (outputs, inputs, forward_block, backward_block)
    listing(1, flat.data_ptr(), *sizes, *(array.data_ptr() for array in (listed, by_row, by_column)))
    row_starts, column_starts = _starts(by_row), _starts(by_column)
    # Placing moves each column's start on by the number of weights placed.
    arrays = (listed, by_row, row_starts, column_starts.clone(), columns, order, rows)
    placing(1, outputs, forward_blocks, inputs, backward_block, *(array.data_ptr() for array in arrays))
    return Structure(
        row_pointers=_pointers(row_starts, forward_blocks),
        columns=columns,
        order=order,
        column_pointers=_pointers(column_starts, backward_blocks),
        rows=rows,
        row_work=_work(by_row, forward_blocks),
        column_work=_work(by_column, backward_blocks),
    )


def places(structure: Structure) -> Tensor:
    """Of each value, in the backward's order, its place in the flattened weight: int64 (Z,), on the CPU."""
    pointers, rows = structure.column_pointers.cpu(), structure.rows.cpu()
    found = torch.empty(structure.nnz, dtype=torch.int64, device="cpu")
    writing = _kernels(host())[2]
    sizes = (pointers.shape[0], structure.inputs)
    writing(1, *sizes, *(array.data_ptr() for array in (pointers, rows, found)))
    return found


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


@functools.cache
def _kernels(target: Target) -> tuple[Kernel, Kernel, Kernel]:
    return kernel(target, 8, _write_listing), kernel(target, 11, _write_placing), kernel(target, 5, _write_places)


def _write_listing(code: Code, arguments: list[Int], thread: Int, threads: Int) -> None:
    """Lists the columns of the kept weights in row-major order, and counts them by row and by column.

    `listed` has room for one more than are kept. Bytes of a bool tensor are 0 or 1: each column is written, and the
    next one over it unless it is kept: a branch would be guesswork in a random mask.
    """
    mask, outputs, inputs, forward_block, backward_block, listed, by_row, by_column = arguments

    def row(r: Int, before: ir.Value) -> list[ir.Value]:
        start, counts = r * inputs, by_column + r // backward_block * inputs * 4

        def block(c: Int, first: ir.Value) -> list[ir.Value]:
            def column(i: Int, found: ir.Value) -> list[ir.Value]:
                place = Int(code, found)
                code.store_int32(i, listed, place)
                return [(place + code.load_byte(mask, start + i)).value]

            begin = Int(code, first)
            (last,) = code.loop(c, (c + forward_block).min(inputs), column, [first])
            end = Int(code, last)
            code.store_int32(end - begin, by_row, c // forward_block * outputs + r)

            def count(i: Int) -> None:
                place = code.load_int32(listed, i)
                code.store_int32(code.load_int32(counts, place) + 1, counts, place)

            code.loop(begin, end, count)
            return [last]

        return code.loop(0, inputs, block, [before], step=forward_block)

    code.loop(0, outputs, row, [code.raw(0)])


def _write_placing(code: Code, arguments: list[Int], thread: Int, threads: Int) -> None:
    """Puts each listed weight where both directions want it."""
    outputs, forward_blocks, inputs, backward_block, listed, by_row, *arrays = arguments
    row_next, column_next, columns, order, rows = arrays

    def row(r: Int, before: ir.Value) -> list[ir.Value]:
        nexts = column_next + r // backward_block * inputs * 4

        def block(number: Int, first: ir.Value) -> list[ir.Value]:
            begin, place = Int(code, first), number * outputs + r
            end = begin + code.load_int32(by_row, place)
            shift = code.load_int32(row_next, place) - begin

            def one(i: Int) -> None:
                column = code.load_int32(listed, i)
                backward = code.load_int32(nexts, column)
                code.store_int32(backward + 1, nexts, column)
                code.store_int32(column, columns, i + shift)
                code.store_int32(backward, order, i + shift)
                code.store_int32(r, rows, backward)

            code.loop(begin, end, one)
            return [end.value]

        return code.loop(0, forward_blocks, block, [before])

    code.loop(0, outputs, row, [code.raw(0)])


def _write_places(code: Code, arguments: list[Int], thread: Int, threads: Int) -> None:
    """places[z] = rows[z] · inputs + column, column by column of each backward block."""
    blocks, inputs, column_pointers, rows, places = arguments

    def block(number: Int) -> None:
        pointers = column_pointers + number * (inputs + 1) * 4

        def column(c: Int) -> None:
            def one(z: Int) -> None:
                code.store_int(code.load_int32(rows, z) * inputs + c, places, z)

            code.loop(code.load_int32(pointers, c), code.load_int32(pointers, c + 1), one)

        code.loop(0, inputs, column)

    code.loop(0, blocks, block)
