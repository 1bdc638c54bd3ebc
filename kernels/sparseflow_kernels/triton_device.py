"""What launchers must know of the device."""

from __future__ import annotations

import functools
import math

import torch


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of that GPU; 1 under the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def threads_of_warp() -> int:
    """32 on NVIDIA chips and under the interpreter, 64 on AMD's CDNA."""
    return 64 if torch.version.hip else 32


def divisor(number: int) -> int:
    """The largest of 1, 2, 4, 8 and 16 that divides it: what the compiler is told of an address."""
    return math.gcd(number, 16)
