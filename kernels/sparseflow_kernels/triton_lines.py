"""Where the input of a product lies: feature-major, tokens contiguous within lines.

Output token t = line * run + i of a product reads, for column k of the sparse matrix, the element

    (table[k] if there is a table, else k * pitch) + (offsets[line] if there are offsets, else 0) + i

of x, counted from its first. A linear layer is one line. A convolution is an implicit matrix product over images stored
as CHWN and padded with zeros (`triton_conv`): the table holds the place of each tap.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
