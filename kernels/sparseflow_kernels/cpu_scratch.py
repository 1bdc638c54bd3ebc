"""Memory that the CPU kernels work in: kept by each Python thread, grown when needed, never read across calls."""

from __future__ import annotations

import threading

import torch


class _Kept(threading.local):
    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)


_KEPT = _Kept()


def scratch(size: int) -> int:
    """Address of room for that many bytes; what stands there is arbitrary."""
    buffer = _KEPT.buffer
    if buffer.shape[0] < size:
        # A little more than asked for, so that slowly growing sizes do not allocate each time.
        buffer = _KEPT.buffer = torch.empty(size + size // 8 + 256, dtype=torch.uint8)
    return buffer.data_ptr()
