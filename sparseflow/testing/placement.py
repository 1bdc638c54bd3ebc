"""Where a tensor lies in memory: every form that a layer hands to an op, with NaN all around it.

What an op reads beyond its inputs then shows in what it computes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Wider than any tile that a kernel might read at once, and odd, so that nothing lies where vectors are aligned.
_BORDER = 259


def bordered(tensor: Tensor) -> Tensor:
    """A contiguous copy in the midst of NaN."""
    memory = tensor.new_full((tensor.numel() + 2 * _BORDER,), math.nan)
    inside = memory[_BORDER:-_BORDER].view(tensor.shape)
    return inside.copy_(tensor)


def sliced(tensor: Tensor) -> Tensor:
    """A copy that is part of a wider and longer tensor, NaN elsewhere: rows of numbers with gaps between them."""
    rows, *middle, width = tensor.shape
    memory = tensor.new_full((rows + 2, *middle, width + 6), math.nan)
    return memory[1:-1, ..., 3:-3].copy_(tensor)


def feature_major(tensor: Tensor) -> Tensor:
    """A copy with the batch contiguous, in the midst of NaN: strides (1, B), or images stored as CHWN."""
    return bordered(tensor.movedim(0, -1)).movedim(-1, 0)


def expanded(tensor: Tensor) -> Tensor:
    """The first number in place of all of them, all strides 0: what the gradient of a sum looks like."""
    return bordered(tensor.reshape(-1)[:1]).expand(tensor.shape)


def is_feature_major(tensor: Tensor) -> bool:
    """Whether the batch is contiguous."""
    return tensor.movedim(0, -1).is_contiguous()


def memory_of(tensor: Tensor) -> Tensor:
    """All bytes of the storage that a tensor lies in, borders included; not a copy."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
