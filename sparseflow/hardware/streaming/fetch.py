"""Weights as autograd sees them: made when asked for, forgotten at once, and asked for again by backward.

A weight is the output of `_Fetch`, so that no leaf keeps it; what autograd saves of it is only where it lay. All uses
of one parameter in one pass hang on one `_Gate`, a tensor of the weight's shape that has no memory: autograd adds up
their gradients there, and the sum leaves when the last of them has come.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Takes a parameter's whole gradient.
Sink = Callable[[Tensor], None]


class Lender(Protocol):
    """Who lends weights: knows its memory again, and can make a weight once more."""

    def unit_at(self, address: int) -> str | None:
        """The unit that lies in the memory that begins at this address; None for memory of somebody else."""
        ...

    def again(self, unit: str) -> Tensor:
        """The unit's numbers, flat, streamed for backward."""
        ...


def gate(anchor: Tensor, shape: tuple[int, ...], sink: Sink) -> Tensor:
    """A tensor of that shape without memory, whose gradient goes to `sink`. anchor: a scalar that needs one."""
    return cast(Tensor, _Gate.apply(anchor, shape, sink))  # type: ignore[no-untyped-call]


def through(gate: Tensor, weight: Tensor) -> Tensor:
    """The weight, whose gradient goes to the gate."""
    return cast(Tensor, _Fetch.apply(gate, _Loan(weight)))  # type: ignore[no-untyped-call]


def forgetting(lender: Lender) -> AbstractContextManager[None]:
    """While it is on, autograd saves of a lent weight only where it lay.

    Everything else it saves as ever, and as ever `RuntimeError` where that was changed before backward.
    """

    def pack(tensor: Tensor) -> _Where | _Kept:
        unit = lender.unit_at(tensor.untyped_storage().data_ptr())
        if unit is None:
            return _Kept(tensor, tensor._version)
        return _Where(unit, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def unpack(saved: _Where | _Kept) -> Tensor:
        if isinstance(saved, _Where):
            return lender.again(saved.unit).as_strided(saved.shape, saved.strides, saved.offset)
        if saved.tensor._version != saved.version:
            raise RuntimeError(
                f"a tensor of shape {tuple(saved.tensor.shape)} that backward needs was changed in place after the "
                "forward that used it; use the out-of-place operation"
            )
        return saved.tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


@dataclass(frozen=True)
class _Where:
    unit: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


@dataclass(frozen=True, eq=False)
class _Kept:
    tensor: Tensor
    version: int


@dataclass(frozen=True, eq=False)
class _Loan:
    # In a box, so that autograd does not take it for an input.
    weight: Tensor


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, shape: tuple[int, ...], sink: Sink) -> Tensor:
        ctx.sink = sink
        return anchor.new_empty(()).expand(shape)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[None, None, None]:
        ctx.sink(gradient.to_dense() if gradient.is_sparse else gradient)
        return None, None, None


class _Fetch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, loan: _Loan) -> Tensor:
        return loan.weight

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, None]:
        return gradient, None
