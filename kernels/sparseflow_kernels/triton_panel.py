"""Y = W X on tensor cores for W in panels: forward and input gradient of linear layers and convolutions, 16 bits.

Activations are feature-major: X (K, tokens) and Y (O, tokens) with tokens contiguous, so that a step gathers whole rows
of X, 16 bytes a thread, by asynchronous copies into shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseflow_kernels.triton_lines import Lines
from sparseflow_kernels.triton_panel_address import is_wide, panel_addresses
from sparseflow_kernels.triton_panels import CHUNK, Panels


@dataclass(frozen=True)
class PanelConfig:
    """The tile of one program: a panel times `tokens`, `depth` columns a step, `stages` steps under way at once."""

    tokens: int
    depth: int
    warps: int
    stages: int

    def shared(self, height: int) -> int:
        """Bytes of shared memory that it takes at the most."""
        return 2 * self.stages * self.depth * (height + self.tokens)


@triton.jit
def panel_spmm_kernel(
    packed,
    index,
    starts,
    widths,
    x,
    offsets,
    table,
    bias,
    y,
    panels,
    rows,
    run,
    tiles,
    pitch,
    tokens,
    HEIGHT: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
    RELU: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # All panels of one tile of tokens are neighbours in time, so that they share its rows of x in the L2.
    panel = tl.program_id(0) % panels
    tile = tl.program_id(0) // panels
    line = tile // tiles
    t = (tile % tiles) * TOKENS + tl.arange(0, TOKENS)
    lane = tl.arange(0, HEIGHT)
    depth = tl.arange(0, DEPTH)
    start = tl.load(starts + panel)
    width = tl.load(widths + panel)
    if offsets is not None:
        base = tl.load(offsets + line)
        if WIDE:
            base = tl.multiple_of(base, 8)
        x += base
    index += start
    # The place in packed of step k is linear in k: where it is not, the loads are not overlapped.
    packed += start.to(tl.int64) * HEIGHT
    w_at = (depth // CHUNK * HEIGHT * CHUNK + depth % CHUNK)[None, :] + lane[:, None] * CHUNK
    acc = tl.zeros((HEIGHT, TOKENS), dtype=tl.float32)
    # Addresses are loaded one step ahead: of a chain of loads in one step only the first would be far enough ahead.
    at = panel_addresses(index, depth, width, table, pitch, WIDE)
    for k in range(0, width, DEPTH):
        # Padding is not read: what stands there may be NaN, which a weight of zero would not undo.
        inside = (k + depth < width)[:, None] & (t < run)[None, :]
        tile_x = tl.load(x + at[:, None] + t[None, :], mask=inside, other=0.0)
        tile_w = tl.load(packed + w_at + k * HEIGHT)
        if WIDEN:
            tile_x = tile_x.to(tl.float32)
            tile_w = tile_w.to(tl.float32)
        acc = tl.dot(tile_w, tile_x, acc)
        at = panel_addresses(index, k + DEPTH + depth, width, table, pitch, WIDE)
    row = panel * HEIGHT + lane
    if bias is not None:
        acc += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    if RELU:
        # Not a maximum, which would lose NaN.
        acc = tl.where(acc < 0.0, 0.0, acc)
    y += line.to(tl.int64) * run
    inside = (row < rows)[:, None] & (t < run)[None, :]
    tl.store(y + row.to(tl.int64)[:, None] * tokens + t[None, :], acc.to(y.dtype.element_ty), mask=inside)


def panel_spmm(
    panels: Panels,
    packed: Tensor,
    x: Tensor,
    lines: Lines,
    dtype: torch.dtype,
    bias: Tensor | None,
    relu: bool,
    config: PanelConfig,
) -> Tensor:
    """Y (O, tokens) of the packed weights and the x that the lines lead through, both of one 16-bit dtype.

    `dtype`: of Y. `bias` (O,) of any floating dtype is added before rounding, then `relu` applied.
    """
    y = torch.empty(panels.rows, lines.tokens, dtype=dtype, device=x.device)
    tiles = triton.cdiv(lines.run, config.tokens)
    grid = (panels.count * lines.count * tiles,)
    if not grid[0]:
        return y
    panel_spmm_kernel[grid](
        packed,
        panels.index,
        panels.starts,
        panels.widths,
        x,
        lines.offsets,
        lines.table,
        bias,
        y,
        panels.count,
        panels.rows,
        lines.run,
        tiles,
        lines.pitch,
        lines.tokens,
        HEIGHT=panels.height,
        CHUNK=CHUNK,
        TOKENS=config.tokens,
        DEPTH=config.depth,
        WIDE=is_wide(lines),
        RELU=relu,
        WIDEN=not isinstance(panel_spmm_kernel, triton.runtime.JITFunction),
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return y
