"""dW = dY Xᵀ on tensor cores where W keeps anything, for W in panels of 16-bit layers.

A program multiplies whole columns of a panel and writes of the product what is kept, each value once: the bits of a
column tell which rows are, and how many of them precede a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseflow_kernels.triton_lines import Lines
from sparseflow_kernels.triton_panel_address import is_wide, panel_addresses
from sparseflow_kernels.triton_panels import Panels


@dataclass(frozen=True)
class GradientConfig:
    """The tile of one program: a panel times `slots` of its columns, `tokens` a step, `stages` steps under way."""

    slots: int
    tokens: int
    warps: int
    stages: int

    def shared(self, height: int) -> int:
        """Bytes of shared memory that it takes at the most."""
        return 2 * self.stages * self.tokens * (height + self.slots)


@triton.jit
def panel_sddmm_kernel(
    dy,
    x,
    index,
    starts,
    widths,
    kept,
    first,
    source,
    offsets,
    table,
    out,
    blocks,
    rows,
    run,
    tiles,
    each,
    lines,
    pitch,
    pitch_dy,
    nnz,
    HEIGHT: tl.constexpr,
    SLOTS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    panel = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks * SLOTS
    width = tl.load(widths + panel)
    if block >= width:
        return
    start = tl.load(starts + panel)
    slot = block + tl.arange(0, SLOTS)
    lane = tl.arange(0, HEIGHT)
    row = panel * HEIGHT + lane
    at = panel_addresses(index + start, slot, width, table, pitch, WIDE)
    x_at = at[:, None]
    dy_at = row.to(tl.int64)[:, None] * pitch_dy
    acc = tl.zeros((HEIGHT, SLOTS), dtype=tl.float32)
    begin = tl.program_id(1) * each
    if offsets is not None:
        base = _line_offset(offsets, begin // tiles, lines, WIDE)
    for tile in range(begin, tl.minimum(begin + each, tiles * lines)):
        line = tile // tiles
        t = (tile - line * tiles) * TOKENS + tl.arange(0, TOKENS)
        inside = (t < run)[None, :]
        x_line = x
        dy_line = dy
        if offsets is not None:
            x_line += base
            dy_line += line.to(tl.int64) * run
            # Loaded one step ahead, so that the loads behind it can be overlapped.
            base = _line_offset(offsets, (tile + 1) // tiles, lines, WIDE)
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


@triton.jit
def _line_offset(offsets, line, lines, WIDE: tl.constexpr):
    offset = tl.load(offsets + tl.minimum(line, lines - 1))
    if WIDE:
        offset = tl.multiple_of(offset, 8)
    return offset


@triton.jit
def _ones(bits):
    """The number of bits that are set (Warren, Hacker's Delight, figure 5-2)."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    bits = bits + (bits >> 8)
    return (bits + (bits >> 16)) & 0x3F


def panel_sddmm(
    panels: Panels, dy: Tensor, x: Tensor, lines: Lines, config: GradientConfig, programs: int = 1
) -> Tensor:
    """dvalues (Z,), float32 in canonical order, of dy (O, tokens) with contiguous rows and the x of the lines.

    dy and x have one 16-bit dtype. Tokens are split between programs until there are `programs`, what they found added
    in fixed order.
    """
    blocks = triton.cdiv(panels.longest, config.slots)
    tiles = triton.cdiv(lines.run, config.tokens)
    steps = tiles * lines.count
    if not (panels.nnz and steps):
        return torch.zeros(panels.nnz, device=x.device)
    each = triton.cdiv(steps, min(steps, triton.cdiv(programs, panels.count * blocks)))
    splits = triton.cdiv(steps, each)
    out = torch.empty(splits, panels.nnz, device=x.device)
    panel_sddmm_kernel[(panels.count * blocks, splits)](
        dy,
        x,
        panels.index,
        panels.starts,
        panels.widths,
        panels.kept,
        panels.first,
        panels.source,
        lines.offsets,
        lines.table,
        out,
        blocks,
        panels.rows,
        lines.run,
        tiles,
        each,
        lines.count,
        lines.pitch,
        dy.stride(0),
        panels.nnz,
        HEIGHT=panels.height,
        SLOTS=config.slots,
        TOKENS=config.tokens,
        WIDE=is_wide(lines),
        WIDEN=not isinstance(panel_sddmm_kernel, triton.runtime.JITFunction),
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return out[0] if splits == 1 else out.sum(0)
