"""The dense weight gradient of a sparse layer, for algorithms that look at pruned weights too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.grad import conv2d_weight

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
        gradient = self._linear(dy, x) if self.geometry.kind == "linear" else self._conv2d(dy, x)
        gradient = (gradient.t() if self.transposed else gradient).to(self.dtype)
        self.total = gradient if self.total is None else self.total + gradient

    def _linear(self, dy: Tensor, x: Tensor) -> Tensor:
        return dy.t().mm(x)

    def _conv2d(self, dy: Tensor, x: Tensor) -> Tensor:
        g = self.geometry
        return conv2d_weight(  # type: ignore[no-any-return, no-untyped-call]
            x, self.shape, dy, g.stride, g.padding, g.dilation, g.groups
        )
