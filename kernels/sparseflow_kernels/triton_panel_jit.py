"""The kernels that multiply panels on tensor cores. Their launchers are in `triton_panel` and `triton_panel_gradient`.

What a step multiplies is loaded several steps before, by asynchronous copies into shared memory. The compiler does so
for loads whose addresses it can compute that early: linear in the step, or loaded in the step before.
"""

import triton.language as tl

from sparseflow_kernels.triton_jit import jit
from sparseflow_kernels.triton_words_jit import multiple


@jit
def panel_spmm_kernel(
    packed, index, starts, widths, x, offsets, table, bias, y, panels, rows, run, tiles_of_line, pitch, tokens,
    HEIGHT: tl.constexpr, CHUNK: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr, UNIT: tl.constexpr,
    RELU: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One program: a panel times one tile of tokens. `packed` and x have one 16-bit dtype."""
    # All panels of one tile of tokens are neighbours in time, so that they share its rows of x in the L2.
    panel = tl.program_id(0) % panels
    tile = tl.program_id(0) // panels
    line = tile // tiles_of_line
    t = (tile % tiles_of_line) * TOKENS + tl.arange(0, TOKENS)
    lane = tl.arange(0, HEIGHT)
    depth = tl.arange(0, DEPTH)
    start = tl.load(starts + panel)
    width = tl.load(widths + panel)
    if offsets is not None:
        x += multiple(tl.load(offsets + line), UNIT)
    index += start
    # The place in packed of step k is linear in k: where it is not, the loads are not overlapped.
    packed += start.to(tl.int64) * HEIGHT
    w_at = (depth // CHUNK * HEIGHT * CHUNK + depth % CHUNK)[None, :] + lane[:, None] * CHUNK
    acc = tl.zeros((HEIGHT, TOKENS), dtype=tl.float32)
    # Addresses are loaded one step ahead: of a chain of loads in one step only the first would be far enough ahead.
    at = _addresses(index, depth, width, table, pitch, UNIT)
    for k in range(0, width, DEPTH):
        # Padding is not read: what stands there may be NaN, which a weight of zero would not undo.
        inside = (k + depth < width)[:, None] & (t < run)[None, :]
        tile_x = tl.load(x + at[:, None] + t[None, :], mask=inside, other=0.0)
        tile_w = tl.load(packed + w_at + k * HEIGHT)
        if WIDEN:
            tile_x = tile_x.to(tl.float32)
            tile_w = tile_w.to(tl.float32)
        acc = tl.dot(tile_w, tile_x, acc)
        at = _addresses(index, k + DEPTH + depth, width, table, pitch, UNIT)
    row = panel * HEIGHT + lane
    if bias is not None:
        acc += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    if RELU:
        # Not a maximum, which would lose NaN.
        acc = tl.where(acc < 0.0, 0.0, acc)
    y += line.to(tl.int64) * run
    inside = (row < rows)[:, None] & (t < run)[None, :]
    tl.store(y + row.to(tl.int64)[:, None] * tokens + t[None, :], acc.to(y.dtype.element_ty), mask=inside)


@jit
def _addresses(index, slots, width, table, pitch, UNIT: tl.constexpr):
    """Elements from the start of x, int64, to the rows that these slots of a panel name."""
    column = tl.load(index + slots, mask=slots < width, other=0).to(tl.int32)
    if index.dtype.element_ty == tl.int16:
        # The bits are those of an unsigned number.
        column = column & 0xFFFF
    return column.to(tl.int64) * pitch if table is None else multiple(tl.load(table + column), UNIT)


@jit
def panel_sddmm_kernel(
    dy, x, index, starts, widths, kept, first, source, offsets, table, out,
    blocks, rows, run, tiles_of_line, tiles_of_part, lines, pitch, dy_pitch, nnz,
    HEIGHT: tl.constexpr, SLOTS: tl.constexpr, TOKENS: tl.constexpr, UNIT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One program: SLOTS columns of a panel, over one part of the tokens.

    Of the product it writes what is kept: the bits of a column tell which rows are, and how many stand before each.
    """
    panel = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks * SLOTS
    width = tl.load(widths + panel)
    if block >= width:
        return
    start = tl.load(starts + panel)
    slot = block + tl.arange(0, SLOTS)
    lane = tl.arange(0, HEIGHT)
    row = panel * HEIGHT + lane
    x_at = _addresses(index + start, slot, width, table, pitch, UNIT)[:, None]
    dy_at = row.to(tl.int64)[:, None] * dy_pitch
    acc = tl.zeros((HEIGHT, SLOTS), dtype=tl.float32)
    begin = tl.program_id(1) * tiles_of_part
    if offsets is not None:
        base = _line_offset(offsets, begin // tiles_of_line, lines, UNIT)
    for tile in range(begin, tl.minimum(begin + tiles_of_part, tiles_of_line * lines)):
        line = tile // tiles_of_line
        t = (tile - line * tiles_of_line) * TOKENS + tl.arange(0, TOKENS)
        inside = (t < run)[None, :]
        x_line = x
        dy_line = dy
        if offsets is not None:
            x_line += base
            dy_line += line.to(tl.int64) * run
            # Loaded one step ahead, so that the loads behind it can be overlapped.
            base = _line_offset(offsets, (tile + 1) // tiles_of_line, lines, UNIT)
        tile_dy = tl.load(dy_line + dy_at + t[None, :], mask=inside & (row < rows)[:, None], other=0.0)
        tile_x = tl.load(x_line + x_at + t[None, :], mask=inside & (slot < width)[:, None], other=0.0)
        if WIDEN:
            tile_dy = tile_dy.to(tl.float32)
            tile_x = tile_x.to(tl.float32)
        acc = tl.dot(tile_dy, tl.trans(tile_x), acc)
    # (word, row of its 32, slot)
    WORDS: tl.constexpr = HEIGHT // 32
    parts = tl.reshape(acc, (WORDS, 32, SLOTS))
    word_at = (start + slot)[None, :] * WORDS + tl.arange(0, WORDS)[:, None]
    real = (slot < width)[None, :]
    bits = tl.load(kept + word_at, mask=real, other=0).to(tl.uint32, bitcast=True)[:, None, :]
    before = tl.load(first + word_at, mask=real, other=0)[:, None, :]
    bit = tl.arange(0, 32)[None, :, None].to(tl.uint32)
    one = tl.full((1, 32, 1), 1, tl.uint32)
    is_kept = (bits >> bit) & 1 != 0
    rank = before + _ones(bits & ((one << bit) - 1)).to(tl.int32)
    place = tl.load(source + rank, mask=is_kept, other=0)
    tl.store(out + tl.program_id(1).to(tl.int64) * nnz + place, parts, mask=is_kept)


@jit
def _line_offset(offsets, line, lines, UNIT: tl.constexpr):
    return multiple(tl.load(offsets + tl.minimum(line, lines - 1)), UNIT)


@jit
def _ones(bits):
    """The number of bits that are set (Warren, Hacker's Delight, figure 5-2)."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    bits = bits + (bits >> 8)
    return (bits + (bits >> 16)) & 0x3F


@jit
def panel_fill_kernel(values, source, target, packed, nnz, BLOCK: tl.constexpr):
    """One program: BLOCK values, in the order of the slots."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < nnz
    value = tl.load(values + tl.load(source + place, mask=inside, other=0), mask=inside, other=0.0)
    value = value.to(tl.float32).to(packed.dtype.element_ty)
    tl.store(packed + tl.load(target + place, mask=inside, other=0), value, mask=inside)
