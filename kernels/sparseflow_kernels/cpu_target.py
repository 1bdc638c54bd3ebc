"""Which vector unit the CPU kernels are written for: this machine's own, or a named one."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass

from llvmlite import binding


@dataclass(frozen=True)
class Target:
    """A CPU as LLVM names it, and how many float32 numbers one of its vector registers holds."""

    cpu: str
    features: str
    lanes: int


# Every AVX2 machine has what this one has.
AVX2 = Target("haswell", "", 8)


@functools.cache
def host() -> Target:
    """This machine: 16 lanes with AVX-512, 8 with AVX2, 4 with SSE2 or NEON, 1 where no vector unit is known."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512vl"):
        lanes = 16
    elif features.get("avx2") and features.get("fma"):
        lanes = 8
    elif features.get("sse2") or features.get("neon") or platform.machine() in ("aarch64", "arm64"):
        lanes = 4
    else:
        lanes = 1
    # Some CPUs ask LLVM to split 512-bit vectors, for the sake of code that uses few of them.
    return Target(binding.get_host_cpu_name(), f"{features.flatten()},-prefer-256-bit".lstrip(","), lanes)


def scalar() -> Target:
    """This machine without its vector unit: one-lane code, for machines whose vectors nobody has described."""
    return Target(host().cpu, "", 1)
