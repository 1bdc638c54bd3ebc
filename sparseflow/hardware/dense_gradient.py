"""The dense weight gradient of a sparse layer, for algorithms that look at pruned weights too."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sparseflow.hardware.layers import SparseLayer


class DenseGradient:
    """Sums the dense weight gradient of one layer over backward passes, for algorithms that regrow (RigL)."""

    def __init__(self, layer: SparseLayer) -> None:
        self.geometry = layer.geometry
        self.transposed = layer.transposed
        self.shape = layer.weight_shape[::-1] if layer.transposed else layer.weight_shape
        # Under autocast the gradient comes in a short dtype; the sum is kept in the parameter's.
        self.dtype = layer.values.dtype
        # A tensor like the dense parameter, once a backward has run.
        self.total: Tensor | None = None

    def add(self, dy: Tensor, x: Tensor) -> None:
        gradient = (self._linear(dy, x) if self.geometry.kind == "linear" else self._conv2d(dy, x)).to(self.dtype)
        self.total = gradient if self.total is None else self.total + gradient

    def _linear(self, dy: Tensor, x: Tensor) -> Tensor:
        # Contiguous in the parameter's own shape.
        return x.t().mm(dy) if self.transposed else dy.t().mm(x)

    def _conv2d(self, dy: Tensor, x: Tensor) -> Tensor:
        g = self.geometry
        # Only the shape of the weight is read.
        like = x.new_empty(1).expand(self.shape)
        sizes = (g.stride, g.padding, g.dilation, False, [0, 0], g.groups)
        _, dweight, _ = torch.ops.aten.convolution_backward(dy, x, like, None, *sizes, [False, True, False])
        return cast(Tensor, dweight)
