"""The products of a weight-streaming wafer, one nonzero at a time: slow, and there to bound what the fast path may do.

The features of a layer's input are shared out over groups of cores, its tokens over others. Forward: the nonzeros of a
row come in ascending columns; each adds weight × column to the partial sum of the group that holds its feature; after
the row's last one the groups' sums are chained, first group first, and the bias comes last. dgrad is the same with the
columns of W as rows. wgrad: each nonzero is a dot product, token after token in each group of tokens, and the groups'
sums are chained likewise. Products of 16-bit operands are exact and are added in float32.

Shapes: B rows or images, I in, O out, Z nonzeros, T tokens (rows, or the output pixels of all images).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflow.hardware.workload import Geometry

# Of features, and of tokens. Any number is as right; it stands in the layout, so that a run keeps its own.
GROUPS = 8


@dataclass(frozen=True)
class Order:
    """In which order a layer's numbers are added up, as data: nothing else decides about its bits."""

    geometry: Geometry
    groups: int

    def spans(self, count: int) -> list[tuple[int, int]]:
        """First and end of each group of so many features or tokens; the first groups have one more."""
        size, more = divmod(count, self.groups)
        firsts = [i * size + min(i, more) for i in range(self.groups + 1)]
        return [(first, end) for first, end in pairwise(firsts) if first < end]


def literal_forward(order: Order, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, I) or (B, C, H, W) → as F.linear or F.conv2d, in the machine's order."""
    outputs = []
    for tokens, part, kept in _matrices(order, x, weight, mask):
        outputs.append(_axpys(order, tokens, part, kept))
    y_TO = torch.cat(outputs, dim=1)
    if bias is not None:
        y_TO = y_TO + bias.to(y_TO.dtype)
    return _images(order, x, weight, y_TO).to(x.dtype)


def literal_backward(order: Order, dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(dx, dvalues), dvalues in canonical order."""
    dy_TO = dy if order.geometry.kind == "linear" else dy.movedim(1, -1).flatten(0, 2)
    parts = dy_TO.to(_accumulator(dy)).chunk(order.geometry.groups, dim=1)
    dtokens, dvalues = [], []
    for dy_part, (tokens, part, kept) in zip(parts, _matrices(order, x, weight, mask)):
        dtokens.append(_axpys(order, dy_part, part.t(), kept.t()))
        dvalues.append(_dots(order, dy_part, tokens, kept))
    return _folded(order, x, weight, torch.cat(dtokens, dim=1)).to(x.dtype), torch.cat(dvalues).to(x.dtype)


def _axpys(order: Order, x_TI: Tensor, weight_OI: Tensor, mask_OI: Tensor) -> Tensor:
    outputs = []
    for row, kept in zip(weight_OI, mask_OI):
        total = None
        for first, end in order.spans(len(row)):
            partial = x_TI.new_zeros(len(x_TI))
            for column in range(first, end):
                if kept[column]:
                    partial = partial + row[column] * x_TI[:, column]
            total = partial if total is None else total + partial
        outputs.append(x_TI.new_zeros(len(x_TI)) if total is None else total)
    return torch.stack(outputs, dim=1)


def _dots(order: Order, dy_TO: Tensor, x_TI: Tensor, mask_OI: Tensor) -> Tensor:
    # All nonzeros at once: they do not meet.
    rows, columns = mask_OI.nonzero(as_tuple=True)
    total = dy_TO.new_zeros(len(rows))
    for number, (first, end) in enumerate(order.spans(len(dy_TO))):
        partial = dy_TO.new_zeros(len(rows))
        for token in range(first, end):
            partial = partial + dy_TO[token, rows] * x_TI[token, columns]
        total = total + partial if number else partial
    return total


def _matrices(order: Order, x: Tensor, weight: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Tokens, weight and mask as matrices, for each of a convolution's groups."""
    geometry, accumulator = order.geometry, _accumulator(x)
    x, weight = x.to(accumulator), weight.to(accumulator)
    if geometry.kind == "linear":
        yield x, weight, mask
        return
    # (B, C · window, pixels), channels of one group together.
    unfolded = F.unfold(x, weight.shape[2:], geometry.dilation, geometry.padding, geometry.stride)
    tokens = unfolded.transpose(1, 2).flatten(0, 1)
    parts = (one.chunk(geometry.groups) for one in (weight.flatten(1), mask.flatten(1)))
    yield from zip(tokens.chunk(geometry.groups, dim=1), *parts)


def _images(order: Order, x: Tensor, weight: Tensor, y_TO: Tensor) -> Tensor:
    geometry = order.geometry
    if geometry.kind == "linear":
        return y_TO
    height, width = (
        (x.shape[2 + i] + 2 * geometry.padding[i] - geometry.dilation[i] * (weight.shape[2 + i] - 1) - 1)
        // geometry.stride[i]
        + 1
        for i in (0, 1)
    )
    return y_TO.view(len(x), height, width, len(weight)).movedim(-1, 1)


def _folded(order: Order, x: Tensor, weight: Tensor, dtokens: Tensor) -> Tensor:
    geometry = order.geometry
    if geometry.kind == "linear":
        return dtokens
    patches = dtokens.view(len(x), -1, dtokens.shape[1]).transpose(1, 2)
    size = (x.shape[2], x.shape[3])
    return F.fold(patches, size, weight.shape[2:], geometry.dilation, geometry.padding, geometry.stride)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
