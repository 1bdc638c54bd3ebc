"""y = W x for a sparse W in slices and a feature-major x, with bias and ReLU: the forward and the input gradient.

Each output row is a sum of rows of x, so that no load is wasted whatever the mask. Products and sums are float32, in a
fixed order: results repeat bit for bit. What bounds the kernel is how fast rows of x come from the first-level cache;
hence the lanes of a slice, which walk through the columns together, and the order of the programs, which lets those
that run at the same time read the same tile of tokens.

Shapes: O rows, K columns, R lanes of a slice, T tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow_kernels.triton_lines import Lines
from sparseflow_kernels.triton_slices import Slices
from sparseflow_kernels.triton_spmm_jit import add_pieces_kernel, spmm_kernel


@dataclass(frozen=True)
class SpmmConfig:
    """How one program works: on `tokens` × `repeat` tokens of a slice, with `warps` warps.

    `share`: how many multiprocessors work on one tile of tokens at a time.
    """

    tokens: int
    repeat: int
    warps: int
    share: int = 1


def spmm(
    slices: Slices,
    packed: Tensor,
    x: Tensor,
    lines: Lines,
    dtype: torch.dtype,
    bias_O: Tensor | None = None,
    relu: bool = False,
    config: SpmmConfig | None = None,
) -> Tensor:
    """relu(W x + b): (O, tokens), contiguous, of that dtype.

    `packed`: the values in the order of the slots (`triton_pack.refresh`). Dtypes are float32, bfloat16 or float16, in
    any combination. `ValueError` where shapes, devices or dtypes do not fit.
    """
    check_product(slices, x, lines)
    if packed.shape != (slices.slots,):
        raise ValueError(f"expected {slices.slots} packed values, got shape {tuple(packed.shape)}; pack them anew")
    if bias_O is not None and bias_O.shape != (slices.rows,):
        raise ValueError(f"expected a bias of shape ({slices.rows},), got {tuple(bias_O.shape)}")
    y = x.new_empty(slices.rows, lines.tokens, dtype=dtype)
    if y.numel() == 0:
        return y
    config = config or default_config(x.dtype, x.device)
    pieces = x.new_empty(slices.pieces, lines.tokens, dtype=torch.float32)
    _launch(slices, packed, x, lines, bias_O, relu, config, y, pieces)
    if slices.pieces:
        _add_pieces(slices, pieces, bias_O, relu, y)
    return y


def default_config(dtype: torch.dtype, device: torch.device) -> SpmmConfig:
    """What to use where nothing was measured."""
    if device.type == "cpu":
        return INTERPRETED
    return DEFAULT[dtype.itemsize]


# By bytes of a number of x. 128 bytes of a lane's tokens are one line of cache.
DEFAULT = {4: SpmmConfig(32, 2, 8, 2), 2: SpmmConfig(64, 2, 8, 2)}
# The interpreter takes as long for a small tile as for a large one.
INTERPRETED = SpmmConfig(1024, 1, 4)
CONFIGS = {
    4: [SpmmConfig(tokens, repeat, warps, 2) for tokens in (32, 64) for repeat in (1, 2) for warps in (4, 8, 16)],
    2: [SpmmConfig(tokens, repeat, warps, 2) for tokens in (64, 128) for repeat in (1, 2) for warps in (4, 8, 16)],
}


def check_product(slices: Slices, x: Tensor, lines: Lines) -> None:
    """`ValueError` where x is not what the slices and lines need, so that nothing is read out of its bounds."""
    if lines.table is not None and lines.table.shape != (slices.columns,):
        raise ValueError(f"expected lines for {slices.columns} columns, got {lines.table.numel()}")
    held = x.untyped_storage().nbytes() // x.itemsize - x.storage_offset()
    if held < lines.extent:
        raise ValueError(f"expected x to hold {lines.extent} elements, got {held}")
    if x.device != slices.index.device:
        raise ValueError(f"expected x on {slices.index.device}, where the mask was packed, got {x.device}; move one")
    if x.dtype not in DTYPES:
        raise ValueError(f"expected x of float32, bfloat16 or float16, got {x.dtype}")


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _launch(
    slices: Slices,
    packed: Tensor,
    x: Tensor,
    lines: Lines,
    bias: Tensor | None,
    relu: bool,
    config: SpmmConfig,
    y: Tensor,
    pieces: Tensor,
) -> None:
    tokens = min(config.tokens, 1 << (lines.run - 1).bit_length())
    tile = tokens * config.repeat
    tiles_of_line = -(-lines.run // tile)
    tiles = lines.count * tiles_of_line
    spmm_kernel[(tiles * slices.count,)](
        x,
        slices.index,
        packed,
        slices.targets,
        slices.lengths,
        slices.starts,
        lines.offsets if lines.offsets is not None else slices.starts,
        lines.table if lines.table is not None else slices.starts,
        bias if bias is not None else packed,
        y,
        pieces,
        slices.rows,
        slices.count,
        tiles,
        tiles_of_line,
        lines.run,
        lines.pitch,
        lines.tokens,
        max(1, multiprocessors(x.device) // config.share),
        HEIGHT=slices.height,
        TOKENS=tokens,
        REPEAT=config.repeat,
        EVEN=lines.run % tile == 0,
        UNIT=16 if lines.unit % 16 == 0 else 1,
        OFFSETS=lines.offsets is not None,
        TABLE=lines.table is not None,
        BIAS=bias is not None,
        RELU=relu,
        SPLIT=slices.pieces > 0,
        num_warps=config.warps,
    )


def _add_pieces(slices: Slices, pieces: Tensor, bias: Tensor | None, relu: bool, y: Tensor) -> None:
    tokens = 1024
    grid = (-(-y.shape[1] // tokens), slices.split_rows.shape[0])
    add_pieces_kernel[grid](
        pieces,
        slices.split_rows,
        slices.split_starts,
        bias if bias is not None else pieces,
        y,
        y.shape[1],
        TOKENS=tokens,
        BIAS=bias is not None,
        RELU=relu,
        num_warps=4,
    )


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of the GPU; 1 under the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
