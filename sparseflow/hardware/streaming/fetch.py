"""Weights as autograd sees them: made when asked for, forgotten at once, and asked for again by backward.

All uses of one parameter in one pass hang on one gate, a leaf of the weight's shape: autograd adds up their gradients
there, and the sum leaves when the last of them has come. A weight that is lent in a buffer is the output of `_Fetch`,
so that no leaf keeps it, and its gate has no memory; one that is used where it lies is its gate itself. What autograd
saves of either is only where it lay.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Takes a parameter's whole gradient.
Sink = Callable[[Tensor], None]


class Lender(Protocol):
    """Who lends weights: knows its memory again, and can fill it once more."""

    def lent_at(self, address: int, offset: int) -> Callable[[], Tensor] | None:
        """What streams the numbers in the memory that begins there for backward; None for memory of somebody else.

        offset: of the one that is asked for, in numbers.
        """
        ...


def gate(weight: Tensor, sink: Sink) -> Tensor:
    """A leaf with the memory of this tensor, whose gradient goes to `sink`."""
    leaf = weight.detach().requires_grad_()
    leaf.register_post_accumulate_grad_hook(partial(_leave, sink))  # type: ignore[no-untyped-call]
    return leaf


def through(gate: Tensor, weight: Tensor) -> Tensor:
    """The weight, whose gradient goes to the gate."""
    return cast(Tensor, _Fetch.apply(gate, _Loan(weight)))  # type: ignore[no-untyped-call]


def forgetting(lender: Lender) -> AbstractContextManager[None]:
    """While it is on, autograd saves of a lent weight only where it lay.

    Everything else it saves as ever, and as ever `RuntimeError` where that was changed before backward.
    """

    def pack(tensor: Tensor) -> _Where | _Kept:
        offset = int(tensor.storage_offset())
        again = lender.lent_at(tensor.untyped_storage().data_ptr(), offset)
        if again is None:
            return _Kept(tensor, tensor._version)
        return _Where(again, tuple(tensor.shape), tensor.stride(), offset)

    def unpack(saved: _Where | _Kept) -> Tensor:
        if isinstance(saved, _Where):
            return saved.again().as_strided(saved.shape, saved.strides, saved.offset)
        if saved.tensor._version != saved.version:
            raise RuntimeError(
                f"a tensor of shape {tuple(saved.tensor.shape)} that backward needs was changed in place after the "
                "forward that used it; use the out-of-place operation"
            )
        return saved.tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _leave(sink: Sink, leaf: Tensor) -> None:
    gradient, leaf.grad = leaf.grad, None
    assert gradient is not None
    if gradient.requires_grad:
        raise RuntimeError(
            "the gradient of a streamed weight goes to its store and cannot be differentiated: leave create_graph out"
        )
    sink(gradient.to_dense() if gradient.is_sparse else gradient)


@dataclass(frozen=True)
class _Where:
    again: Callable[[], Tensor]
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
