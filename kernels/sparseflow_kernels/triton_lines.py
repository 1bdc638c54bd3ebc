"""Where the input of a product lies: feature-major, tokens contiguous within lines.

Output token t = line * run + i of a product reads, for column k of the sparse matrix, the element

    (table[k] if there is a table, else k * pitch) + (offsets[line] if there are offsets, else 0) + i

of x, counted from its first. A linear layer is one line. A convolution is an implicit matrix product over images stored
as CHWN and padded with zeros (`triton_conv`): the table holds the place of each tap.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Tokens are counted in 32 bits, to the end of the last tile.
MOST_TOKENS = 2**31 - 2**16


@dataclass(frozen=True, eq=False)
class Lines:
    """`count` lines of `run` tokens, for K `columns`. All places are numbers of elements, and 64 bits wide."""

    columns: int
    count: int
    run: int
    # Elements between columns, where there is no table.
    pitch: int
    # Elements of x from its first to behind the last that any token reads.
    extent: int
    # int64 (count,); None: one line at 0.
    offsets: Tensor | None = None
    # int64 (K,)
    table: Tensor | None = None
    # A number that divides all of `offsets` and `table`: wide loads need 16.
    unit: int = 1

    @property
    def tokens(self) -> int:
        return self.count * self.run


def linear_lines(x_KB: Tensor) -> Lines:
    """The line of a (K, B) matrix with contiguous rows, which may have gaps between them."""
    features, tokens = x_KB.shape
    if tokens > 1 and x_KB.stride(1) != 1:
        raise ValueError(f"expected x feature-major, strides (any, 1), got {tuple(x_KB.stride())}; copy it first")
    pitch = x_KB.stride(0) if features > 1 else tokens
    return Lines(features, 1, tokens, pitch, max(features - 1, 0) * pitch + tokens)


def check_read(x: Tensor, lines: Lines, columns: int, device: torch.device) -> None:
    """`ValueError` where x, on that device with its mask, does not hold what the lines read of so many columns."""
    if x.device != device:
        raise ValueError(f"expected x on {device}, where the mask was packed, got {x.device}; move one")
    if lines.columns != columns:
        raise ValueError(f"expected lines of {columns} columns, got {lines.columns}")
    held = x.untyped_storage().nbytes() // x.itemsize - x.storage_offset()
    if held < lines.extent:
        raise ValueError(f"expected x to hold {lines.extent} elements behind its first, got {held}")
    if lines.tokens > MOST_TOKENS:
        raise ValueError(f"expected {MOST_TOKENS} tokens at most, got {lines.tokens}; split the batch")
