"""y = W x for a sparse W in slices and a feature-major x, with bias and ReLU: the forward and the input gradient.

Each output row is a sum of rows of x, so that no load is wasted whatever the mask. Products and sums are float32, in a
fixed order: results repeat bit for bit.

What bounds the kernel is how fast rows of x come from the first-level cache, so long as they are there. Two ways lead
to that. The lanes of a slice walk through the columns together, so that at high density a band of x suffices for many
of them. And where a tile of few tokens fits in the cache as a whole, a few programs do all slices of that tile.

Shapes: O rows, K columns, R lanes of a slice, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from sparseflow_kernels.triton_device import divisor, multiprocessors, threads_of_warp
from sparseflow_kernels.triton_lines import Lines, check_read
from sparseflow_kernels.triton_powers import check_least, check_powers
from sparseflow_kernels.triton_slices import Slices
from sparseflow_kernels.triton_spmm_jit import add_pieces_kernel, spmm_kernel


@dataclass(frozen=True)
class SpmmConfig:
    """How the work is cut: into blocks of `lanes` lanes, by tiles of `tokens` × `repeat` tokens.

    `rows`: lanes that one thread works on. `programs`: how many share a tile, each doing its part of the blocks; 0: one
    for each block. `share`: multiprocessors that work on the same tile at a time.
    """

    lanes: int
    tokens: int
    repeat: int = 1
    rows: int = 1
    programs: int = 0
    share: int = 1

    def __post_init__(self) -> None:
        check_powers(self, "lanes", "tokens", "repeat", "rows")
        check_least(self, 0, "programs")
        check_least(self, 1, "share")

    def warps(self, lanes: int, itemsize: int, threads: int = 32) -> int:
        """Warps of a program that has that many lanes; `threads`: of a warp."""
        return min(max(1, lanes * self.tokens * itemsize // (16 * threads * self.rows)), 1024 // threads)


# By bytes of a number of x. At 10 % of the weights kept, the band of 64 lanes is some 500 columns wide.
DEFAULT = {size: SpmmConfig(64, 128 // size, rows=2, share=2) for size in (4, 2)}
# The interpreter takes about as long for a large tile as for a small one.
INTERPRETED = SpmmConfig(128, 1024)
# What may be faster. A lane's tile of tokens is 32 to 256 bytes; with fewer, a thread would load less than 16. Threads
# outnumber lanes, or the compiler moves columns and values through shared memory.
CONFIGS = {
    size: [
        *(
            SpmmConfig(lanes, 128 // size, repeat, 1, 0, share)
            for lanes, repeat, share in product((16, 32), (1, 2), (1, 4))
            # Eight warps, each thread with 16 sums in the 64 registers that the compiler leaves it, spill on sm_90.
            if (lanes, repeat, size) != (32, 2, 2)
        ),
        *(SpmmConfig(64, 128 // size, repeat, 2, 0, share) for repeat, share in product((1, 2), (1, 2))),
        *(SpmmConfig(16, 256 // size, 1, 1, 0, share) for share in (1, 4)),
        *(SpmmConfig(64, 64 // size, 1, 1, programs) for programs in (0, 2, 4, 8)),
        *(SpmmConfig(128, 32 // size, 1, 1, programs) for programs in (0, 2, 4, 8)),
    ]
    for size in (4, 2)
}


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
    config = config or (DEFAULT[x.itemsize] if x.device.type == "cuda" else INTERPRETED)
    pieces = x.new_empty(slices.pieces, lines.tokens, dtype=torch.float32)
    _launch(slices, packed, x, lines, bias_O, relu, config, y, pieces)
    if slices.pieces:
        _add_pieces(slices, pieces, bias_O, relu, y)
    return y


def check_product(slices: Slices, x: Tensor, lines: Lines) -> None:
    """`ValueError` where x is not what slices and lines need, so that nothing is read out of its bounds."""
    if x.dtype not in DTYPES:
        raise ValueError(f"expected x of float32, bfloat16 or float16, got {x.dtype}; use the backend 'dense-compact'")
    check_read(x, lines, slices.columns, slices.index.device)


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
    lanes = min(config.lanes, slices.height)
    blocks = slices.lengths.shape[0] // lanes
    programs = min(config.programs or blocks, blocks)
    # Arguments that a kernel does not use may be any tensor.
    spmm_kernel[(tiles * programs,)](
        x,
        slices.index,
        packed,
        slices.targets,
        slices.lengths,
        slices.starts,
        slices.starts if lines.offsets is None else lines.offsets,
        slices.starts if lines.table is None else lines.table,
        packed if bias is None else bias,
        y,
        pieces,
        slices.rows,
        blocks,
        programs,
        tiles,
        tiles_of_line,
        lines.run,
        lines.pitch,
        lines.tokens,
        max(1, multiprocessors(x.device) // config.share),
        HEIGHT=slices.height,
        LANES=lanes,
        TOKENS=tokens,
        REPEAT=config.repeat,
        EVEN=lines.run % tile == 0,
        UNIT=divisor(lines.unit),
        OFFSETS=lines.offsets is not None,
        TABLE=lines.table is not None,
        BIAS=bias is not None,
        RELU=relu,
        SPLIT=slices.pieces > 0,
        num_warps=config.warps(lanes, x.itemsize, threads_of_warp()),
    )


def _add_pieces(slices: Slices, pieces: Tensor, bias: Tensor | None, relu: bool, y: Tensor) -> None:
    tokens = 1024
    tiles = -(-y.shape[1] // tokens)
    # One axis: a GPU's second one ends at 65535, and there may be more rows than that, or more tiles.
    add_pieces_kernel[(tiles * slices.split_rows.shape[0],)](
        pieces,
        slices.split_rows,
        slices.split_starts,
        pieces if bias is None else bias,
        y,
        y.shape[1],
        tiles,
        TOKENS=tokens,
        BIAS=bias is not None,
        RELU=relu,
        num_warps=4,
    )
