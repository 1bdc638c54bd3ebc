"""Reads memory and adds it up, to see how fast that goes: from L2 where it fits there."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseflow_kernels.triton_read_jit import read_kernel

_BLOCK = 1024


def read(x: Tensor, rounds: int, programs: int) -> Tensor:
    """Sums (programs, 1024) that add up to `rounds` times the sum of x: float32, a multiple of 1024 numbers.

    Each round every number is read once, by another program than in the round before.
    """
    assert x.dtype == torch.float32 and x.numel() % _BLOCK == 0 and x.is_contiguous()
    out = torch.empty(programs, _BLOCK, device=x.device)
    read_kernel[(programs,)](x, out, x.numel() // _BLOCK, rounds, BLOCK=_BLOCK, num_warps=8)
    return out
