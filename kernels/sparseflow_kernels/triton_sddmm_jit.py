"""The SDDMM kernel, and the one that adds partial sums. Their launchers are in `triton_sddmm`."""

import triton
import triton.language as tl

# Steps that stand side by side: triton_slices.GROUP.
_GROUP = tl.constexpr(4)


@triton.jit
def sddmm_kernel(
    dy, x, index, source, lane_rows, lengths, starts, offsets, table, out,
    slices, chunks, tiles, tiles_of_line, tiles_of_part, run, pitch, dy_pitch, nnz,
    HEIGHT: tl.constexpr, STEPS: tl.constexpr, TOKENS: tl.constexpr, EVEN: tl.constexpr, UNIT: tl.constexpr,
    OFFSETS: tl.constexpr, TABLE: tl.constexpr,
):  # fmt: skip
    """One program: STEPS steps of a slice, over one part of the tokens."""
    number = tl.program_id(0)
    slice = number % slices
    chunk = number // slices % chunks
    part = number // slices // chunks
    lane = tl.arange(0, HEIGHT)
    if chunk * STEPS < tl.load(lengths + slice * HEIGHT):
        length = tl.load(lengths + slice * HEIGHT + lane)
        row = tl.load(lane_rows + slice * HEIGHT + lane)
        step = chunk * STEPS + tl.arange(0, STEPS)[:, None]
        kept = step < length[None, :]
        slot = tl.load(starts + slice) + (step // _GROUP * HEIGHT + lane[None, :]) * _GROUP + step % _GROUP
        column = tl.load(index + slot, mask=kept, other=0)
        if column.dtype == tl.int16:
            # The bits are those of an unsigned number.
            column = column.to(tl.int32) & 0xFFFF
        if TABLE:
            place = tl.multiple_of(tl.load(table + column, mask=kept, other=0), [UNIT, UNIT])
        else:
            place = column.to(tl.int64) * pitch
        x_columns = x + place[:, :, None]
        dy_rows = dy + (row.to(tl.int64) * dy_pitch)[:, None]
        any_kept = length > chunk * STEPS
        token = tl.arange(0, TOKENS)
        sums = tl.zeros((STEPS, HEIGHT, TOKENS), dtype=tl.float32)
        for tile in range(part * tiles_of_part, tl.minimum(tiles, (part + 1) * tiles_of_part)):
            line, first = tile // tiles_of_line, tile % tiles_of_line * TOKENS
            inside = first + token < run
            x_first = first
            if OFFSETS:
                x_first = first + tl.multiple_of(tl.load(offsets + line), UNIT)
            gradient = tl.load(
                dy_rows + (line * run + first + token)[None, :],
                mask=any_kept[:, None] & inside[None, :],
                other=0.0,
            )
            numbers = tl.load(
                x_columns + (x_first + token)[None, None, :],
                mask=kept[:, :, None] & inside[None, None, :],
                other=0.0,
            )
            sums += gradient.to(tl.float32)[None, :, :] * numbers.to(tl.float32)
        total = tl.sum(sums, axis=2)
        target = tl.load(source + slot, mask=kept, other=0)
        tl.store(out + part.to(tl.int64) * nnz + target, total.to(out.dtype.element_ty), mask=kept)


@triton.jit
def add_parts_kernel(parts, out, nnz, count, BLOCK: tl.constexpr):
    """One program: BLOCK values, their partial sums added in order."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < nnz
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    for _ in range(0, count):
        sums += tl.load(parts + place, mask=inside, other=0.0)
        parts += nnz
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=inside)
