"""How far two tensors are apart, and how far they may be: one measure, and one tolerance for each dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparseflow.training.proof import TOLERANCE

__all__ = ["TOLERANCE", "assert_close", "relative_error", "same_bits"]


def relative_error(got: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of `expected`; 0 where both are zero or empty, NaN where one is not finite."""
    if expected.numel() == 0:
        return 0.0
    wanted = expected.detach().double()
    error = (got.detach().double() - wanted).pow(2).mean().sqrt().item()
    scale = wanted.pow(2).mean().sqrt().item()
    return error / scale if scale else (0.0 if error == 0 else math.inf)


def assert_close(got: Tensor, expected: Tensor, what: str = "the tensor") -> None:
    """`AssertionError` unless shapes agree and `relative_error` stays within `TOLERANCE` of the dtype of `got`."""
    assert got.shape == expected.shape, f"{what}: expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
    error = relative_error(got, expected)
    assert error <= TOLERANCE[got.dtype], f"{what}: relative error {error:.1e}, allowed {TOLERANCE[got.dtype]:.0e}"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether shapes, dtypes and every bit agree: -0.0 is not 0.0, and a NaN is itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(one.contiguous().reshape(-1).view(torch.uint8) for one in (a, b)))
