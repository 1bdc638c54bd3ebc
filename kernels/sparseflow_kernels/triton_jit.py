"""`triton.jit` as type checkers should see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton


def jit(function: Callable[..., Any]) -> Any:
    """The function as a kernel, to be launched as kernel[grid](..., num_warps=...), or to be called by kernels."""
    return triton.jit(function)
