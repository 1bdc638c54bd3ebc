"""Dense products on the masked weight: what the sparse ones must beat, and how much zeros alone speed them up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from sparseflow.bench.gpu.point import Point, Ready, Side, Verdict, measure
from sparseflow.bench.gpu.problem import (
    PRODUCTS,
    Problem,
    Product,
    dense_launches,
    float32_products,
    judge,
    poisoned,
    problem,
)
from sparseflow.bench.gpu.setting import Setting

# Zeros in the operands let a chip draw less power, and clock higher.
_DENSITIES = (1.0, 0.5, 0.1, 0.01)
# Ten bits of mantissa, as in float16.
_TF32_TOLERANCE = 3e-3


@dataclass(frozen=True)
class _Mode:
    name: str
    dtype: torch.dtype
    precision: Literal["highest", "high"]
    tolerance: float | None


_MODES = (
    _Mode("fp32", torch.float32, "highest", None),
    _Mode("tf32", torch.float32, "high", _TF32_TOLERANCE),
    _Mode("bf16", torch.bfloat16, "highest", None),
)


def dense(setting: Setting) -> Iterator[Point]:
    """cuBLAS or rocBLAS in fp32 IEEE, TF32 and bf16, on weights masked at several densities."""
    for mode in _MODES:
        for density in _DENSITIES if setting.timed else _DENSITIES[-2:]:
            task = problem(setting, setting.shape, mode.dtype, density)
            sides = [dense_side("dense", task, product, mode.tolerance, mode.name) for product in PRODUCTS]
            with float32_products(mode.precision):
                yield from measure(sides, task.copies, setting.timed)


def dense_side(section: str, task: Problem, product: Product, tolerance: float | None = None, dtype: str = "") -> Side:
    """torch's dense product on the masked weight."""
    launch = dense_launches(task)[product]

    def verdict() -> Verdict:
        with poisoned():
            got = launch(0)
        # Of the weight gradient the reference knows the kept entries alone.
        got = torch.where(task.mask, got, 0.0) if product == "wgrad" else got
        return judge(got, task.expected(product), tolerance)

    return Side(task.point(section, "dense", product, dtype), lambda: Ready(launch, verdict))
