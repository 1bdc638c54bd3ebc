"""How fast this machine multiplies and copies: two numbers for models of cost, measured once a process."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Rates:
    """Dense matrix product in operations a second, copy in bytes a second (read plus written)."""

    flops: float
    bandwidth: float


@functools.cache
def rates(device: torch.device, dtype: torch.dtype, threads: int) -> Rates:
    """Medians of five tries on about 1e8 operations and 16 MB; a few milliseconds. `threads` only keys the cache."""
    del threads
    x = torch.ones(256, 512, device=device, dtype=dtype)
    w = torch.ones(512, 512, device=device, dtype=dtype)
    source = torch.ones(1 << 22, device=device, dtype=torch.float32)
    target = torch.empty_like(source)
    product = seconds(lambda: x @ w, device)
    copy = seconds(lambda: target.copy_(source), device)
    return Rates(2 * 256 * 512 * 512 / product, 2 * source.numel() * 4 / copy)


def seconds(call: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median wall time of `call` after one warm-up, waiting for the device."""
    call()
    return median(_once(call, device) for _ in range(repeats))


def _once(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
