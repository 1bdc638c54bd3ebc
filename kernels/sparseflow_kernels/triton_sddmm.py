"""dW = dy xᵀ at the kept places of W alone: the weight gradient, from feature-major dy and x.

A program holds a few steps of a slice and walks through the tokens: a row of dy is read once for all its steps. The
tokens are cut into parts, whose rows of x and dy fit in the second-level cache together; their sums are added at the
end, in order. Products and sums are float32 and repeat bit for bit.

Shapes: O rows, K columns, Z kept weights, R lanes of a slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from sparseflow_kernels.triton_device import divisor, threads_of_warp
from sparseflow_kernels.triton_lines import Lines
from sparseflow_kernels.triton_powers import check_least, check_powers
from sparseflow_kernels.triton_sddmm_jit import add_parts_kernel, sddmm_kernel
from sparseflow_kernels.triton_slices import Slices
from sparseflow_kernels.triton_spmm import check_product


@dataclass(frozen=True)
class SddmmConfig:
    """How the work is cut: into `steps` steps (a multiple of 4) of `lanes` lanes, by `tokens` tokens at a time.

    `part`: tokens that one program walks through.
    """

    lanes: int
    steps: int
    tokens: int
    part: int

    def __post_init__(self) -> None:
        check_powers(self, "lanes", "steps", "tokens")
        check_least(self, 1, "part")

    def warps(self, lanes: int, itemsize: int, threads: int = 32) -> int:
        """Warps of a program that has that many lanes; `threads`: of a warp."""
        return max(1, lanes * self.tokens * itemsize // (16 * threads))


# Numbers of all partial sums together, at most: a quarter of a gigabyte.
_SCRATCH = 1 << 26
# By bytes of a number of x.
DEFAULT = {size: SddmmConfig(32, 16, 64 // size, 4096 // size) for size in (4, 2)}
# The interpreter takes about as long for a large tile as for a small one.
INTERPRETED = SddmmConfig(32, 16, 256, part=1 << 30)
# What may be faster, for 4 or 8 warps: more steps read dy less often, and fewer tokens leave room for more lanes.
CONFIGS = {
    size: [
        SddmmConfig(tile // width, steps, width // size, part)
        for tile, steps, width, part in product((2048, 4096), (8, 16), (32, 64, 128), (4096 // size, 16384 // size))
        # Eight warps cannot hold that many rows of x in registers on every chip.
        if (tile, steps, width) != (4096, 16, 128)
    ]
    for size in (4, 2)
}


def sddmm(
    slices: Slices,
    dy: Tensor,
    x: Tensor,
    lines: Lines,
    nnz: int,
    dtype: torch.dtype = torch.float32,
    config: SddmmConfig | None = None,
) -> Tensor:
    """(nnz,), of that dtype: the gradients in canonical order. `dy`: (O, tokens), rows contiguous, maybe with gaps.

    `ValueError` where shapes, devices or dtypes do not fit.
    """
    check_product(slices, x, lines)
    if dy.shape != (slices.rows, lines.tokens) or (lines.tokens > 1 and dy.stride(1) != 1):
        raise ValueError(
            f"expected dy of shape ({slices.rows}, {lines.tokens}) with contiguous rows, "
            f"got {tuple(dy.shape)} with strides {tuple(dy.stride())}"
        )
    if dy.device != x.device:
        raise ValueError(f"expected dy on {x.device}, where x is, got {dy.device}; move one")
    config = config or (DEFAULT[x.itemsize] if x.device.type == "cuda" else INTERPRETED)
    tokens = min(config.tokens, 1 << max(lines.run - 1, 0).bit_length())
    tiles = lines.count * -(-lines.run // tokens)
    parts = max(1, min(-(-tiles * tokens // config.part), _SCRATCH // max(nnz, 1)))
    sums = x.new_empty(parts, nnz, dtype=torch.float32 if parts > 1 else dtype)
    if nnz == 0:
        return sums[0]
    _launch(slices, dy, x, lines, nnz, config, tokens, parts, sums)
    if parts == 1:
        return sums[0]
    out = x.new_empty(nnz, dtype=dtype)
    add_parts_kernel[(-(-nnz // 1024),)](sums, out, nnz, parts, BLOCK=1024, num_warps=4)
    return out


def _launch(
    slices: Slices,
    dy: Tensor,
    x: Tensor,
    lines: Lines,
    nnz: int,
    config: SddmmConfig,
    tokens: int,
    parts: int,
    sums: Tensor,
) -> None:
    tiles_of_line = -(-lines.run // tokens)
    tiles = lines.count * tiles_of_line
    chunks = -(-slices.steps // config.steps)
    lanes = min(config.lanes, slices.height)
    blocks = slices.lengths.shape[0] // lanes
    # Arguments that a kernel does not use may be any tensor.
    sddmm_kernel[(blocks * chunks * parts,)](
        dy,
        x,
        slices.index,
        slices.source,
        slices.lane_rows,
        slices.lengths,
        slices.starts,
        slices.starts if lines.offsets is None else lines.offsets,
        slices.starts if lines.table is None else lines.table,
        sums,
        blocks,
        chunks,
        tiles,
        tiles_of_line,
        -(-tiles // parts),
        lines.run,
        lines.pitch,
        dy.stride(0) if slices.rows > 1 else lines.tokens,
        nnz,
        HEIGHT=slices.height,
        LANES=lanes,
        STEPS=config.steps,
        TOKENS=tokens,
        VECTOR=min(tokens, 16 // x.itemsize),
        EVEN=lines.run % tokens == 0,
        UNIT=divisor(lines.unit),
        OFFSETS=lines.offsets is not None,
        TABLE=lines.table is not None,
        num_warps=config.warps(lanes, x.itemsize, threads_of_warp()),
    )
