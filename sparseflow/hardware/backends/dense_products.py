"""The products of a layer by torch's own dense kernels, given its weight as a matrix or as filters.

Shapes: B rows or images, I in, O out, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflow.hardware.workload import Geometry


def product(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y of x (B, I) or (B, C, H, W)."""
    if geometry.kind == "linear":
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)


def gradients(
    geometry: Geometry,
    dy: Tensor,
    x: Tensor,
    weight: Callable[[], Tensor],
    shape: tuple[int, ...],
    need_dx: bool,
    need_dweight: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """(dx, dweight), None where not needed; `weight` of that shape is asked for only if its numbers are read."""
    if geometry.kind == "linear":
        return dy.mm(weight()) if need_dx else None, dy.t().mm(x) if need_dweight else None
    # Without dx the weight's numbers are not read, only its shape.
    w = weight() if need_dx else dy.new_empty(1).expand(shape)
    sizes = (geometry.stride, geometry.padding, geometry.dilation, False, [0, 0], geometry.groups)
    needs = [need_dx, need_dweight, False]
    dx, dweight, _ = torch.ops.aten.convolution_backward(dy, x, w, None, *sizes, needs)
    return dx, dweight
