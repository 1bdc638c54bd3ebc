"""What one layer computes: the question that every backend answers with a cost or with the reason why not.

Shapes: B rows (tokens or images), I in, O out, C channels, H W image.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["linear", "conv2d"]

_CONV2D = re.compile(r"conv2d:s(\d+),(\d+):p(\d+),(\d+):d(\d+),(\d+):g(\d+)")


@dataclass(frozen=True)
class Geometry:
    """How the weight meets the input, apart from all sizes. Zero padding only: layers pad otherwise by themselves."""

    kind: Kind = "linear"
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __str__(self) -> str:
        if self.kind == "linear":
            return "linear"
        (s0, s1), (p0, p1), (d0, d1) = self.stride, self.padding, self.dilation
        return f"conv2d:s{s0},{s1}:p{p0},{p1}:d{d0},{d1}:g{self.groups}"

    @classmethod
    def parse(cls, text: str) -> Geometry:
        """The inverse of `str`, so that a layout string alone lets a backend pack a mask."""
        if text == "linear":
            return cls()
        match = _CONV2D.fullmatch(text)
        if match is None:
            raise ValueError(f"expected a geometry such as 'linear' or 'conv2d:s1,1:p0,0:d1,1:g1', got {text!r}")
        s0, s1, p0, p1, d0, d1, groups = (int(number) for number in match.groups())
        return cls("conv2d", (s0, s1), (p0, p1), (d0, d1), groups)


@dataclass(frozen=True)
class Workload:
    """One layer's work in one training step.

    `shape` is the logical weight: (O, I), or (O, C / groups, height, width). `rows` counts tokens or images
    summed over the calls of a step, and `image` is the input's (H, W): what to expect, not a promise. 0 rows
    means that nobody has looked yet. `bias` and `relu` say what follows the product: a bias, and a ReLU module
    that the layer may do itself. `chained_in` and `chained_out`: where the backend can (FusedOp), the input comes
    and the output goes feature-major, with the batch contiguous.
    """

    shape: tuple[int, ...]
    geometry: Geometry = Geometry()
    rows: int = 0
    image: tuple[int, int] | None = None
    dtype: torch.dtype = torch.float32
    compute_dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    density: float = 1.0
    needs_dx: bool = True
    threads: int = 1
    bias: bool = False
    relu: bool = False
    chained_in: bool = False
    chained_out: bool = False

    @property
    def weights(self) -> int:
        """Number of weights, kept or not."""
        return math.prod(self.shape)

    @property
    def positions(self) -> int:
        """How often each weight is used in a step: rows, times the output pixels of a convolution."""
        if self.geometry.kind == "linear" or self.image is None:
            return self.rows
        height, width = self.output_image(self.image)
        return self.rows * height * width

    @property
    def product_flops(self) -> float:
        """Operations of one dense product; forward, dgrad and wgrad each cost this much."""
        return 2.0 * self.weights * self.positions

    def output_image(self, image: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of a convolution's output."""
        g = self.geometry
        height, width = (
            (image[i] + 2 * g.padding[i] - g.dilation[i] * (self.shape[2 + i] - 1) - 1) // g.stride[i] + 1
            for i in (0, 1)
        )
        return height, width

    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input of one step: (B, I) or (B, C, H, W)."""
        if self.geometry.kind == "linear":
            return (self.rows, self.shape[1])
        height, width = self.image or (self.shape[2], self.shape[3])
        return (self.rows, self.shape[1] * self.geometry.groups, height, width)
