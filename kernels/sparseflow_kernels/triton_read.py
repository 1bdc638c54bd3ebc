"""Reads memory and adds it up, to see how fast that goes: from L2 where it fits there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def read(x: Tensor, rounds: int, programs: int) -> Tensor:
    """Sums (programs, 1024) that add up to `rounds` times the sum of x: float32, a multiple of 1024 numbers.

    Each round every number is read once, by another program than in the round before.
    """
    assert x.dtype == torch.float32 and x.numel() % _BLOCK == 0 and x.is_contiguous()
    out = torch.empty(programs, _BLOCK, device=x.device)
    _read[(programs,)](x, out, x.numel() // _BLOCK, rounds, BLOCK=_BLOCK, num_warps=8)
    return out


@triton.jit
def _read(x, out, blocks, rounds, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    place = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for number in range(rounds):
        for block in range(program, blocks, tl.num_programs(0)):
            # Another block than in the last round, so that L1 does not answer.
            total += tl.load(x + ((block + number * 7) % blocks) * BLOCK + place)
    tl.store(out + program * BLOCK + place, total)
