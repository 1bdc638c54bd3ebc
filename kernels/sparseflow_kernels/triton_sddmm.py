"""dW = dy xᵀ at the kept places of W alone: the weight gradient, from feature-major dy and x.

A program holds a few steps of a slice and walks through the tokens: a row of dy is read once for all its steps. Where
there are more tokens than the second-level cache holds, or too few nonzeros to fill the chip, the tokens are cut into
parts, whose sums are added at the end, in order. Products and sums are float32 and repeat bit for bit.

Shapes: O rows, K columns, Z kept weights, R lanes of a slice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow_kernels.triton_lines import Lines
from sparseflow_kernels.triton_sddmm_jit import add_parts_kernel, sddmm_kernel
from sparseflow_kernels.triton_slices import Slices
from sparseflow_kernels.triton_spmm import check_product


@dataclass(frozen=True)
class SddmmConfig:
    """How one program works: `steps` steps of a slice (a multiple of 4), `tokens` at a time, with `warps` warps.

    `part`: tokens that one program walks through.
    """

    steps: int
    tokens: int
    warps: int
    part: int = 2048


def sddmm(
    slices: Slices,
    dy: Tensor,
    x: Tensor,
    lines: Lines,
    nnz: int,
    dtype: torch.dtype = torch.float32,
    config: SddmmConfig | None = None,
) -> Tensor:
    """(nnz,), of that dtype: the gradients in canonical order. `dy`: (O, tokens), rows contiguous.

    `ValueError` where shapes, devices or dtypes do not fit.
    """
    check_product(slices, x, lines)
    if dy.shape != (slices.rows, lines.tokens) or (lines.tokens > 1 and dy.stride(1) != 1):
        raise ValueError(
            f"expected dy of shape ({slices.rows}, {lines.tokens}) with contiguous rows, "
            f"got {tuple(dy.shape)} with strides {tuple(dy.stride())}"
        )
    config = config or default_config(x.dtype, x.device)
    tokens = min(config.tokens, 1 << max(lines.run - 1, 0).bit_length())
    tiles_of_line = -(-lines.run // tokens)
    tiles = lines.count * tiles_of_line
    tiles_of_part = max(1, config.part // tokens)
    parts = max(1, -(-tiles // tiles_of_part))
    sums = x.new_empty(parts, nnz, dtype=torch.float32 if parts > 1 else dtype)
    if nnz == 0:
        return sums[0]
    chunks = -(-slices.steps // config.steps)
    sddmm_kernel[(slices.count * chunks * parts,)](
        dy,
        x,
        slices.index,
        slices.source,
        slices.lane_rows,
        slices.lengths,
        slices.starts,
        lines.offsets if lines.offsets is not None else slices.starts,
        lines.table if lines.table is not None else slices.starts,
        sums,
        slices.count,
        chunks,
        tiles,
        tiles_of_line,
        tiles_of_part,
        lines.run,
        lines.pitch,
        dy.stride(0) if slices.rows > 1 else lines.tokens,
        nnz,
        HEIGHT=slices.height,
        STEPS=config.steps,
        TOKENS=tokens,
        EVEN=lines.run % tokens == 0,
        UNIT=16 if lines.unit % 16 == 0 else 1,
        OFFSETS=lines.offsets is not None,
        TABLE=lines.table is not None,
        num_warps=config.warps,
    )
    if parts == 1:
        return sums[0]
    out = x.new_empty(nnz, dtype=dtype)
    add_parts_kernel[(-(-nnz // 1024),)](sums, out, nnz, parts, BLOCK=1024, num_warps=4)
    return out


def default_config(dtype: torch.dtype, device: torch.device) -> SddmmConfig:
    """What to use where nothing was measured."""
    if device.type == "cpu":
        return INTERPRETED
    return DEFAULT[dtype.itemsize]


# By bytes of a number of x.
DEFAULT = {4: SddmmConfig(8, 32, 8), 2: SddmmConfig(8, 64, 8)}
INTERPRETED = SddmmConfig(16, 256, 4, 1 << 20)
CONFIGS = {
    4: [SddmmConfig(steps, 32, warps, part) for steps in (4, 8, 16) for warps in (4, 8, 16) for part in (1024, 4096)],
    2: [SddmmConfig(steps, 64, warps, part) for steps in (4, 8, 16) for warps in (4, 8, 16) for part in (1024, 4096)],
}
