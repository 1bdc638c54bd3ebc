"""The nonzeros of a mask as the products see them: by row and column, each with its place in canonical order.

Canonical order is row-major over the parameter. All tensors are int64, on the mask's device, sorted by row and then
column.

Shapes: O outputs, I inputs, C channels of the whole layer, Z kept weights, (a, b) phases of rows and columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparseflow_kernels.triton_axis import Axis


class Coo(NamedTuple):
    """Z nonzeros of a matrix of that shape."""

    rows: Tensor
    columns: Tensor
    places: Tensor
    shape: tuple[int, int]


def forward_coo(mask: Tensor, groups: int = 1) -> Coo:
    """The matrix of the forward: (O, I), or (O, C kh kw) of a (O, C / groups, kh, kw) mask, a block for each group."""
    outputs = mask.shape[0]
    width = mask.shape[1:].numel()
    rows, columns = mask.reshape(outputs, width).nonzero().unbind(1)
    if groups > 1:
        columns = columns + rows // (outputs // groups) * width
    return Coo(rows, columns, torch.arange(rows.numel(), device=mask.device), (outputs, width * groups))


def linear_dgrad_coo(mask_OI: Tensor) -> Coo:
    """The matrix of a linear layer's input gradient: (I, O)."""
    rows, columns = mask_OI.nonzero().unbind(1)
    return _sorted(columns, rows, (mask_OI.shape[1], mask_OI.shape[0]))


def conv_dgrad_coo(mask: Tensor, axes: tuple[Axis, Axis], groups: int = 1) -> Coo:
    """The matrix of a convolution's input gradient: (sh sw C, O kh kw), its rows ordered as (a, b, channel)."""
    outputs, each, height, width = mask.shape
    channels = each * groups
    output, channel, i, j = mask.nonzero().unbind(1)
    channel = channel + output // (outputs // groups) * each
    a, b = (
        torch.tensor([axis.phase(tap) for tap in range(axis.kernel)], device=mask.device)[taps]
        for axis, taps in zip(axes, (i, j))
    )
    columns = (output * height + i) * width + j
    rows = (a * axes[1].stride + b) * channels + channel
    return _sorted(rows, columns, (axes[0].stride * axes[1].stride * channels, outputs * height * width))


def _sorted(rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Coo:
    """Those nonzeros, given in canonical order."""
    order = (rows * shape[1] + columns).argsort()
    return Coo(rows[order], columns[order], order, shape)
