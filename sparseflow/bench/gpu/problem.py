"""One masked linear layer with fresh random numbers: its three products, and what each must compute.

Shapes: O out, I in, T tokens. Activations are feature-major: x (I, T), dy (O, T).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sparseflow.bench.gpu.clock import copies_beyond
from sparseflow.bench.gpu.point import Point, Verdict
from sparseflow.bench.gpu.setting import Setting, Shape, short
from sparseflow.training.proof import TOLERANCE
from sparseflow_kernels import reference

Product = Literal["forward", "dgrad", "wgrad"]
PRODUCTS: tuple[Product, ...] = ("forward", "dgrad", "wgrad")


@dataclass(frozen=True, eq=False)
class Problem:
    """A weight (O, I), zero where `mask` prunes it, and so many copies of x and dy that no cache holds them all."""

    shape: Shape
    density: float
    mask: Tensor
    weight: Tensor
    xs: tuple[Tensor, ...]
    dys: tuple[Tensor, ...]
    _expected: dict[Product, Tensor] = field(init=False, repr=False, default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """Of weight and activations."""
        return self.weight.dtype

    def point(self, section: str, side: str, product: str, dtype: str = "") -> Point:
        """The point, not yet measured, of one product of this problem, or of its whole step."""
        size = (self.shape.outputs, self.shape.inputs, self.shape.tokens)
        return Point(section, side, product, dtype or short(self.dtype), self.density, size)

    @property
    def copies(self) -> int:
        """How many inputs there are to take in turn."""
        return len(self.xs)

    def expected(self, product: Product) -> Tensor:
        """What a product of the first copies must be, in float64: y (O, T), dx (I, T), or dweight (O, I)."""
        if product not in self._expected:
            x, dy = self.xs[0].t(), self.dys[0].t()
            if product == "forward":
                self._expected["forward"] = reference.linear(x, self.weight, self.mask).t()
            else:
                dx, self._expected["wgrad"] = reference.linear_backward(dy, x, self.weight, self.mask)
                self._expected["dgrad"] = dx.t()
        return self._expected[product]


def problem(setting: Setting, shape: Shape, dtype: torch.dtype, density: float) -> Problem:
    """A random mask of this density, of at least one weight, and normal random numbers."""
    size = (shape.outputs, shape.inputs)
    mask = setting.uniform(*size) < density
    mask[0, 0] = True
    weight = torch.where(mask, setting.normal(*size), 0.0).to(dtype)
    copies = copies_beyond(setting.l2, shape.inputs * shape.tokens * dtype.itemsize)
    xs, dys = (
        tuple(setting.normal(rows, shape.tokens).to(dtype) for _ in range(copies))
        for rows in (shape.inputs, shape.outputs)
    )
    return Problem(shape, density, mask, weight, xs, dys)


def judge(got: Tensor, expected: Tensor, tolerance: float | None = None) -> Verdict:
    """("ok", error), or what is wrong with a result, and how far its worst row is off.

    The error of a row is its RMS difference over the RMS of that row, or of all of `expected` where that is more: one
    wrong row is not lost among thousands that are right. Allowed is `tolerance`, by default that of the dtype of `got`.
    """
    if got.shape != expected.shape:
        return f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}", math.inf
    allowed = TOLERANCE[got.dtype] if tolerance is None else tolerance
    squares = expected.pow(2).mean(1)
    scale = torch.maximum(squares, squares.mean()).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    errors = (got.double() - expected).pow(2).mean(1).sqrt() / scale
    # NaN stands where nothing was written.
    row = int(errors.nan_to_num(nan=math.inf).argmax())
    worst = float(errors[row])
    return ("ok" if worst <= allowed else f"row {row}: relative error {worst:.1e}, allowed {allowed:.0e}"), worst


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, memory that torch hands out holds NaN, so that a place that nobody writes shows in the result."""
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            # That a product of torch is not deterministic is no concern here; filling memory is all that we want.
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


@contextmanager
def float32_products(precision: Literal["highest", "high"]) -> Iterator[None]:
    """Inside, torch multiplies float32 so: "highest" is IEEE, "high" is TF32 where the chip has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def dense_launches(problem: Problem) -> dict[Product, Callable[[int], Tensor]]:
    """torch's dense products on the masked weight; the weight gradient is that of all weights."""
    weight, xs, dys = problem.weight, problem.xs, problem.dys
    return {
        "forward": lambda number: weight @ xs[number],
        "dgrad": lambda number: weight.t() @ dys[number],
        "wgrad": lambda number: dys[number] @ xs[number].t(),
    }
