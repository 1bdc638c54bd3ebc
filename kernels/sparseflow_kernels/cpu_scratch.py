"""Memory that the CPU kernels work in: kept by each Python thread, grown when needed, never read across calls."""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class _Kept(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}


_KEPT = _Kept()


def scratch(name: str, numbers: int) -> int:
    """Address of room for that many float32 numbers, aligned to 64 bytes; what stands there is arbitrary."""
    buffer = _KEPT.buffers.get(name)
    if buffer is None or buffer.numel() < numbers:
        # A little more than asked for, so that slowly growing sizes do not allocate each time.
        buffer = _KEPT.buffers[name] = torch.empty(numbers + numbers // 8 + 64)
    return buffer.data_ptr()
