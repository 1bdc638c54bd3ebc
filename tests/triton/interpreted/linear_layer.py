"""One linear layer for the tests of the Triton kernels: random tensors in memory full of NaN, and its structures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow.testing.placement import bordered, sliced
from sparseflow_kernels.triton_coo import forward_coo, linear_dgrad_coo
from sparseflow_kernels.triton_slices import Slices, slices


@dataclass
class LinearLayer:
    """`outputs` × `inputs` weights of which `density` are kept, and `tokens` columns of feature-major input."""

    outputs: int
    inputs: int
    tokens: int
    density: float
    height: int = 8
    cap: int | None = None
    # Whether rows of x and dy have gaps between them.
    gaps: bool = False
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.mask = torch.rand(self.outputs, self.inputs, generator=self.generator) < self.density
        self.weight = self.random(self.outputs, self.inputs).to(self.dtype)
        self.bias = self.random(self.outputs)
        place = sliced if self.gaps else bordered
        self.x = place(self.random(self.inputs, self.tokens).to(self.dtype))
        self.dy = place(self.random(self.outputs, self.tokens).to(self.dtype))

    def random(self, *shape: int) -> Tensor:
        """Of both signs but positive in the mean: of a sum that cancels, rounding alone would be compared."""
        return 2 * torch.rand(shape, generator=self.generator) - 0.5

    @property
    def values(self) -> Tensor:
        """The kept weights, in canonical order."""
        return bordered(self.weight[self.mask])

    @property
    def forward_slices(self) -> Slices:
        return slices(*forward_coo(self.mask), self.height, self.cap)

    @property
    def dgrad_slices(self) -> Slices:
        return slices(*linear_dgrad_coo(self.mask), self.height, self.cap)
