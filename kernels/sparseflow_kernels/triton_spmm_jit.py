"""The SpMM kernel, and the one that adds the pieces of split rows. Their launchers are in `triton_spmm`.

Tiles are (REPEAT, LANES, TOKENS): a block of lanes, by REPEAT times TOKENS consecutive tokens. The compiler gives each
thread 16 bytes of a lane's tokens, and all of the REPEAT dimension: a thread uses a column and a value REPEAT times.
A slice is HEIGHT / LANES blocks of lanes.
"""

import triton.language as tl

from sparseflow_kernels.triton_jit import jit
from sparseflow_kernels.triton_words_jit import load_groups, multiple

# Steps that stand side by side: triton_slices.GROUP.
_GROUP = tl.constexpr(4)


@jit
def spmm_kernel(
    x, index, values, targets, lengths, starts, offsets, table, bias, y, pieces,
    rows, blocks, programs, tiles, tiles_of_line, run, pitch, tokens, together,
    HEIGHT: tl.constexpr, LANES: tl.constexpr, TOKENS: tl.constexpr, REPEAT: tl.constexpr,
    EVEN: tl.constexpr, UNIT: tl.constexpr,
    OFFSETS: tl.constexpr, TABLE: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One program: every `programs`-th block of lanes, times one tile of tokens."""
    tile, program = _tile_and_program(programs, tiles, together)
    line, first = tile // tiles_of_line, tile % tiles_of_line * (TOKENS * REPEAT)
    token = first + tl.arange(0, REPEAT)[:, None, None] * TOKENS + tl.arange(0, TOKENS)[None, None, :]
    inside = token < run
    out = line * run + token
    if OFFSETS:
        x += multiple(tl.load(offsets + line), UNIT)
    for block in range(program, blocks, programs):
        first_lane = block * LANES
        sums = _sums(
            x + token, inside, index, values, lengths, starts, first_lane, table, pitch,
            HEIGHT, LANES, TOKENS, REPEAT, EVEN, UNIT, TABLE,
        )  # fmt: skip
        target = tl.load(targets + first_lane + tl.arange(0, LANES))
        if SPLIT:
            piece = (target >= rows)[None, :, None]
            place = (target - rows).to(tl.int64)[None, :, None] * tokens
            tl.store(pieces + place + out, sums, mask=piece if EVEN else piece & inside)
        is_row = (target >= 0) & (target < rows)
        if BIAS:
            sums += tl.load(bias + target, mask=is_row, other=0.0).to(tl.float32)[None, :, None]
        if RELU:
            sums = _relu(sums)
        mask = is_row[None, :, None] if EVEN else is_row[None, :, None] & inside
        tl.store(y + target.to(tl.int64)[None, :, None] * tokens + out, sums.to(y.dtype.element_ty), mask=mask)


@jit
def add_pieces_kernel(
    pieces, split_rows, split_starts, bias, y, tokens, tiles,
    TOKENS: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """One program: TOKENS tokens of one split row, its pieces added in order."""
    number = tl.program_id(0) // tiles
    row = tl.load(split_rows + number).to(tl.int64)
    token = tl.program_id(0) % tiles * TOKENS + tl.arange(0, TOKENS)
    inside = token < tokens
    sums = tl.zeros((TOKENS,), dtype=tl.float32)
    piece = tl.load(split_starts + number)
    pieces += piece.to(tl.int64) * tokens
    for _ in range(piece, tl.load(split_starts + number + 1)):
        sums += tl.load(pieces + token, mask=inside, other=0.0)
        pieces += tokens
    if BIAS:
        sums += tl.load(bias + row).to(tl.float32)
    if RELU:
        sums = _relu(sums)
    tl.store(y + row * tokens + token, sums.to(y.dtype.element_ty), mask=inside)


@jit
def _tile_and_program(programs, tiles, together):
    """Which tile of tokens, and which of its `programs`. `together` tiles take turns, and then the next ones."""
    number = tl.program_id(0)
    band = number // (together * programs)
    within = number % (together * programs)
    width = tl.minimum(together, tiles - band * together)
    return band * together + within % width, within // width


@jit
def _sums(
    x, inside, index, values, lengths, starts, first_lane, table, pitch,
    HEIGHT: tl.constexpr, LANES: tl.constexpr, TOKENS: tl.constexpr, REPEAT: tl.constexpr,
    EVEN: tl.constexpr, UNIT: tl.constexpr, TABLE: tl.constexpr,
):  # fmt: skip
    """The products of a block, (REPEAT, LANES, TOKENS); `x`: pointers to the tokens of column 0."""
    lane = tl.arange(0, LANES)
    # Lanes are sorted by length: the first is the longest.
    groups = tl.cdiv(tl.load(lengths + first_lane), _GROUP)
    whole = tl.load(lengths + first_lane + LANES - 1) // _GROUP
    group = tl.load(starts + first_lane // HEIGHT) // _GROUP + first_lane % HEIGHT
    sums = tl.zeros((REPEAT, LANES, TOKENS), dtype=tl.float32)
    for _ in range(0, whole):
        sums = _add_group(sums, x, inside, index, values, group + lane, _GROUP, table, pitch, UNIT, TABLE, EVEN, True)
        group += HEIGHT
    left = tl.load(lengths + first_lane + lane) - whole * _GROUP
    for _ in range(whole, groups):
        sums = _add_group(sums, x, inside, index, values, group + lane, left, table, pitch, UNIT, TABLE, EVEN, False)
        group += HEIGHT
        left -= _GROUP
    return sums


@jit
def _add_group(
    sums, x, inside, index, values, group, left, table, pitch,
    UNIT: tl.constexpr, TABLE: tl.constexpr, EVEN: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The sums and the next steps of each lane, of which `left` are nonzeros; WHOLE: all of them."""
    columns = load_groups(index, group)
    numbers = load_groups(values, group)
    for step in tl.static_range(_GROUP):  # pyright: ignore[reportGeneralTypeIssues]
        column = columns[step]
        if index.dtype.element_ty == tl.int16:
            # The bits are those of an unsigned number.
            column = column.to(tl.int32) & 0xFFFF
        place = multiple(tl.load(table + column), UNIT) if TABLE else column.to(tl.int64) * pitch
        pointers = x + place[None, :, None]
        if WHOLE and EVEN:
            row = tl.load(pointers)
        elif WHOLE:
            row = tl.load(pointers, mask=inside, other=0.0)
        elif EVEN:
            row = tl.load(pointers, mask=(step < left)[None, :, None], other=0.0)
        else:
            row = tl.load(pointers, mask=(step < left)[None, :, None] & inside, other=0.0)
        sums += numbers[step].to(tl.float32)[None, :, None] * row.to(tl.float32)
    return sums


@jit
def _relu(numbers):
    # Unlike a maximum, it lets NaN through.
    return tl.where(numbers < 0, 0.0, numbers)
