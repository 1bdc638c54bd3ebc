"""Memory that the CPU kernels work in: kept by each Python thread, grown when needed, never read across calls."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import threading

import torch


class _Kept(threading.local):
    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8, device="cpu")


_KEPT = _Kept()


def scratch(size: int) -> int:
    """Address of room for that many bytes; what stands there is arbitrary."""
    buffer = _KEPT.buffer
    if buffer.shape[0] < size:
        # A little more than asked for, so that slowly growing sizes do not allocate each time.
        buffer = _KEPT.buffer = torch.empty(size + size // 8 + 256, dtype=torch.uint8, device="cpu")
    return buffer.data_ptr()


@functools.cache
def keep_freed_memory() -> None:
    """Has glibc keep up to 256 MB of freed memory for this process; once, and not against the user's own settings.

    A training step frees its activations at its end. By default they may go back to the kernel then, and each next
    step pays for a page fault every 4 KB: at 99 % sparsity as much as for the arithmetic.
    """
    theirs = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}
    if platform.libc_ver()[0] != "glibc" or theirs & os.environ.keys():
        return
    # From malloc.h: M_MMAP_THRESHOLD, at its greatest value, and M_TRIM_THRESHOLD.
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 32 << 20)
    libc.mallopt(-1, 256 << 20)
