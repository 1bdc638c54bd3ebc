"""One product in panels for the tests: random operands of 16 bits in the midst of NaN, and what must come out."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseflow.testing.placement import bordered
from sparseflow_kernels.triton_coo import Coo
from sparseflow_kernels.triton_panels import Panels, panels


class PanelCase:
    """A random (O, K) mask, weights, x (K, T) and dy (O, T). The first nonzero is always kept."""

    def __init__(self, shape: tuple[int, int], tokens: int, density: float, height: int, dtype: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(sum(shape) + tokens)
        self.mask = torch.rand(shape, generator=self.generator) < density
        self.mask[shape[0] // 2, shape[1] // 2] |= density > 0
        self.weight = self.random(*shape).to(dtype) * self.mask
        self.bias = self.random(shape[0])
        self.x = bordered(self.random(shape[1], tokens).to(dtype))
        self.dy = bordered(self.random(shape[0], tokens).to(dtype))
        self.panels = panels(*coo_of(self.mask), height)

    def random(self, *shape: int) -> Tensor:
        """Of both signs but positive in the mean: of a sum that cancels, rounding alone would be compared."""
        return 2 * torch.rand(shape, generator=self.generator) - 0.5

    @property
    def values(self) -> Tensor:
        return self.weight[self.mask]

    @property
    def packed(self) -> Tensor:
        return packed_by_hand(self.panels, self.values)


def coo_of(mask: Tensor) -> Coo:
    rows, columns = mask.nonzero().unbind(1)
    return Coo(rows, columns, torch.arange(rows.numel()), (mask.shape[0], mask.shape[1]))


def packed_by_hand(panels: Panels, values: Tensor) -> Tensor:
    packed = values.new_zeros(panels.slots * panels.height)
    packed[panels.target.long()] = values[panels.source.long()]
    return packed
