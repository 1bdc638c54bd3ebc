"""The SDDMM kernel, and the one that adds partial sums. Their launchers are in `triton_sddmm`.

Tiles are (STEPS, LANES, TOKENS): steps of a block of lanes, by consecutive tokens. The compiler gives each thread 16
bytes of tokens, and all of the STEPS dimension: a thread uses its part of dy STEPS times. A slice is HEIGHT / LANES
blocks of lanes.
"""

import triton.language as tl

from sparseflow_kernels.triton_jit import jit
from sparseflow_kernels.triton_words_jit import multiple

# Steps that stand side by side: triton_slices.GROUP.
_GROUP = tl.constexpr(4)


@jit
def sddmm_kernel(
    dy, x, index, source, lane_rows, lengths, starts, offsets, table, out,
    blocks, chunks, tiles, tiles_of_line, tiles_of_part, run, pitch, dy_pitch, nnz,
    HEIGHT: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr, TOKENS: tl.constexpr, VECTOR: tl.constexpr,
    EVEN: tl.constexpr, UNIT: tl.constexpr, OFFSETS: tl.constexpr, TABLE: tl.constexpr,
):  # fmt: skip
    """One program: STEPS steps of a block of lanes, over one part of the tokens."""
    number = tl.program_id(0)
    first_lane = number % blocks * LANES
    chunk = number // blocks % chunks
    part = number // blocks // chunks
    # Lanes are sorted by length: the first is the longest.
    if chunk * STEPS < tl.load(lengths + first_lane):
        lane = first_lane + tl.arange(0, LANES)
        step = chunk * STEPS + tl.arange(0, STEPS)[:, None]
        kept = step < tl.load(lengths + lane)[None, :]
        group = step // _GROUP * HEIGHT + (lane % HEIGHT)[None, :]
        slot = tl.load(starts + first_lane // HEIGHT) + group * _GROUP + step % _GROUP
        # Where no weight is kept, column 0 is read, and what comes of it is not stored.
        column = tl.load(index + slot, mask=kept, other=0)
        if column.dtype == tl.int16:
            # The bits are those of an unsigned number.
            column = column.to(tl.int32) & 0xFFFF
        place = multiple(tl.load(table + column), UNIT) if TABLE else column.to(tl.int64) * pitch
        x_rows = x + place[:, :, None]
        dy_rows = dy + (tl.load(lane_rows + lane).to(tl.int64) * dy_pitch)[:, None]
        sums = tl.zeros((STEPS, LANES, TOKENS // VECTOR), dtype=tl.float32)
        for tile in range(part * tiles_of_part, tl.minimum(tiles, (part + 1) * tiles_of_part)):
            if OFFSETS:
                line = tile // tiles_of_line
                token = tile % tiles_of_line * TOKENS + tl.arange(0, TOKENS)
                x_first = multiple(tl.load(offsets + line), UNIT)
                dy_first = line * run
            else:
                token = tile * TOKENS + tl.arange(0, TOKENS)
                x_first = 0
                dy_first = 0
            # Scalars go to the tokens: added to the pointers of rows, they would move those between threads each turn.
            x_tile = x_rows + (x_first + token)[None, None, :]
            dy_tile = dy_rows + (dy_first + token)[None, :]
            if EVEN:
                gradient = tl.load(dy_tile)
                numbers = tl.load(x_tile)
            else:
                gradient = tl.load(dy_tile, mask=(token < run)[None, :], other=0.0)
                numbers = tl.load(x_tile, mask=(token < run)[None, None, :], other=0.0)
            products = gradient.to(tl.float32)[None, :, :] * numbers.to(tl.float32)
            sums += tl.sum(tl.reshape(products, (STEPS, LANES, TOKENS // VECTOR, VECTOR)), axis=3)
        total = tl.sum(sums, axis=2)
        place_of_value = part.to(tl.int64) * nnz + tl.load(source + slot, mask=kept, other=0)
        tl.store(out + place_of_value, total.to(out.dtype.element_ty), mask=kept)


@jit
def add_parts_kernel(parts, out, nnz, count, BLOCK: tl.constexpr):
    """One program: BLOCK values, their partial sums added in order."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < nnz
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    for _ in range(0, count):
        sums += tl.load(parts + place, mask=inside, other=0.0)
        parts += nnz
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=inside)
