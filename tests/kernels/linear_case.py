"""One linear layer for the tests of the CPU kernels: random tensors of any layout, and what must come out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow_kernels.cpu_linear import Linear
from sparseflow_kernels.cpu_structure import structure
from sparseflow_kernels.cpu_target import Target


@dataclass
class LinearCase:
    """`outputs` × `inputs` weights of which `density` are kept, and `rows` rows of input."""

    outputs: int
    inputs: int
    rows: int
    density: float
    block: int
    target: Target
    x_feature_major: bool = False
    y_feature_major: bool = False
    relu: bool = False
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.mask = torch.rand(self.outputs, self.inputs, generator=self.generator) < self.density
        self.mask.view(-1)[self.seed % self.mask.numel()] = True
        self.linear = Linear(structure(self.mask, self.block, self.block), self.target)
        self.weight = self.random(self.outputs, self.inputs) * self.mask
        self.bias = self.random(self.outputs)
        self.x = self.matrix(self.rows, self.inputs, self.x_feature_major)
        self.dy = self.matrix(self.rows, self.outputs, self.y_feature_major)

    def random(self, *shape: int) -> Tensor:
        """Of both signs but positive in the mean: of a sum that cancels, rounding alone would be compared."""
        return 2 * torch.rand(shape, generator=self.generator) - 0.5

    def matrix(self, rows: int, features: int, feature_major: bool) -> Tensor:
        """Random activations with the batch or the features contiguous."""
        made = self.random(features, rows).t() if feature_major else self.random(rows, features)
        return made.to(self.dtype)

    def native(self, weight: Tensor) -> Tensor:
        """The kept weights in the order of the kernels, found without them."""
        row, column = self.mask.nonzero().unbind(1)
        order = (row // self.block * self.inputs + column).argsort(stable=True)
        return weight[row[order], column[order]]

    def forward(self, threads: int = 1) -> Tensor:
        values = self.native(self.weight)
        return self.linear.forward(self.x, values, self.bias, self.relu, self.y_feature_major, threads)

    def backward(
        self, y: Tensor, threads: int = 1, need_dx: bool = True, need_dbias: bool = True
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        values, output = self.native(self.weight), y if self.relu else None
        return self.linear.backward(self.dy, self.x, output, values, need_dx, need_dbias, threads)
