"""What every kernel must compute, in float64 and as plainly as possible: masked dense products and their gradients.

Shapes: B rows or images, I in, O out, C channels, H W image. Every function takes any floating dtype and returns
float64; `mask` is True where a weight is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d as _conv2d


def linear(x_BI: Tensor, weight_OI: Tensor, mask_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """(B, O): x Wᵀ + b over the kept weights."""
    y_BO = x_BI.double() @ _kept(weight_OI, mask_OI).t()
    return y_BO if bias_O is None else y_BO + bias_O.double()


def linear_backward(dy_BO: Tensor, x_BI: Tensor, weight_OI: Tensor, mask_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(dx (B, I), dweight (O, I)) of `linear`; dweight is zero where the mask prunes."""
    dy = dy_BO.double()
    return dy @ _kept(weight_OI, mask_OI), torch.where(mask_OI, dy.t() @ x_BI.double(), 0.0)


def conv2d(
    x_BCHW: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias_O: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """(B, O, H', W'): torch's conv2d with zero padding; `weight` is (O, C / groups, height, width)."""
    bias = None if bias_O is None else bias_O.double()
    return _conv2d(x_BCHW.double(), _kept(weight, mask), bias, stride, padding, dilation, groups)


def conv2d_backward(
    dy: Tensor,
    x_BCHW: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """(dx, dweight) of `conv2d`; dweight is zero where the mask prunes."""
    dy, x = dy.double(), x_BCHW.double()
    x, kept = x.detach().requires_grad_(), _kept(weight, mask).detach().requires_grad_()
    with torch.enable_grad():
        y = _conv2d(x, kept, None, stride, padding, dilation, groups)
    dx, dweight = torch.autograd.grad(y, (x, kept), dy)
    return dx, torch.where(mask, dweight, 0.0)


def _kept(weight: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, weight.double(), 0.0)
