"""The product of a sparse layer and the unpacking of its values, as autograd sees them.

Autograd gets tensors and an integer, so that both can become torch custom ops unchanged.
"""

from __future__ import annotations

import itertools
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparseflow.hardware.backends import SparseOp
from sparseflow.hardware.backends.base import FusedOp
from sparseflow.hardware.dense_gradient import DenseGradient

_OPS: WeakValueDictionary[int, SparseOp] = WeakValueDictionary()
_handles = itertools.count()


def handle_of(op: SparseOp) -> int:
    """A new number for this op, good for as long as somebody else keeps the op."""
    handle = next(_handles)
    _OPS[handle] = op
    return handle


def product(x: Tensor, values: Tensor, bias: Tensor | None, handle: int, wanted: DenseGradient | None) -> Tensor:
    """The op's forward, differentiable; its backward also adds to `wanted`, where that is given."""
    return cast(Tensor, _Product.apply(x, values, bias, handle, wanted))  # type: ignore[no-untyped-call]


def fused_product(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    handle: int,
    wanted: DenseGradient | None,
    relu: bool,
    feature_major: bool,
) -> Tensor:
    """As `product` for a FusedOp, which also does the ReLU, the bias gradient, and the layout of the output."""
    y = _FusedProduct.apply(x, values, bias, handle, wanted, relu, feature_major)  # type: ignore[no-untyped-call]
    return cast(Tensor, y)


def autocasts(device: str) -> bool:
    """Whether torch's autocast is on for this type of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which torch's autocast lets this tensor enter a product: its own where off, or for float64."""
    device = tensor.device.type
    if not autocasts(device) or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor.dtype
    return torch.get_autocast_dtype(device)


def autocast_operands(
    x: Tensor, values: Tensor, bias: Tensor | None, short: tuple[torch.dtype, ...]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, values and bias as autocast lets them enter a product; `short`: the `compute_dtypes` of a MasterOp."""
    x = x.to(autocast_dtype(x))
    if values.dtype == torch.float32 and x.dtype in short:
        return x, values, bias
    return x, values.to(autocast_dtype(values)), None if bias is None else bias.to(autocast_dtype(bias))


def unpack(values: Tensor, handle: int) -> Tensor:
    """The dense weight of these values, zeros at pruned places, differentiable."""
    return cast(Tensor, _Unpack.apply(values, handle))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, handle: int, wanted: DenseGradient | None
    ) -> Tensor:
        op = _OPS[handle]
        ctx.save_for_backward(x, values)
        # A mask may change before this backward: it needs the op that made this forward.
        ctx.op = op
        ctx.wanted = wanted
        return op.forward(x, values, bias)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor | None, None, None]:
        _refuse_second_order()
        x, values = ctx.saved_tensors
        dx, dvalues = ctx.op.backward(dy, x, values, ctx.needs_input_grad[0])
        dbias = None
        if ctx.needs_input_grad[2]:
            dbias = dy.sum(0) if dy.dim() == 2 else dy.sum((0, 2, 3))
        if ctx.wanted is not None:
            ctx.wanted.add(dy, x)
        return dx, dvalues, dbias, None, None


class _FusedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        handle: int,
        wanted: DenseGradient | None,
        relu: bool,
        feature_major: bool,
    ) -> Tensor:
        op = cast(FusedOp, _OPS[handle])
        y = op.forward_fused(x, values, bias, relu, feature_major)
        # Saved as the output that it is, so that autograd notices if somebody writes into it.
        ctx.save_for_backward(x, values, y if relu else None)
        ctx.op = op
        ctx.wanted = wanted
        return y

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor | None, None, None, None, None]:
        _refuse_second_order()
        x, values, y = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx, dvalues, dbias = ctx.op.backward_fused(dy, x, y, values, needs[0], needs[2])
        if ctx.wanted is not None:
            ctx.wanted.add(dy if y is None else torch.where(y <= 0, 0, dy), x)
        return dx, dvalues, dbias, None, None, None, None


def _refuse_second_order() -> None:
    # torch's once_differentiable says the same, for a sixth of a small layer's backward.
    if torch.is_grad_enabled():
        raise RuntimeError("a sparse layer's backward cannot be differentiated again (create_graph=True)")


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, handle: int) -> Tensor:
        ctx.op = _OPS[handle]
        return cast(Tensor, ctx.op.unpack_values(values))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dweight: Tensor
    ) -> tuple[Tensor, None]:
        return ctx.op.pack_values(dweight), None
