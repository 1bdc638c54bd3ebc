"""Where an op's values belong: masks from it, and tensors taken from one native order to another.

An op that says its values' places is asked once; any other shows them by unpacking.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor

from sparseflow.hardware.backends import SparseOp
from sparseflow.hardware.backends.base import PlacedOp


def mask_of(op: SparseOp, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bool mask of an op whose values are like these; `shape` is the dense weight's, as the op sees it."""
    if _is_placed(op):
        mask = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool, device=values.device)
        return mask.index_fill_(0, op.places(), True).view(shape)
    return op.unpack_values(torch.ones_like(values, dtype=torch.float32)) != 0


def mover(old: SparseOp, new: SparseOp, size: int) -> Callable[[Tensor], Tensor]:
    """Takes tensors from one op's native order to another's; what is new is zero. `size`: of the dense weight."""
    if _is_placed(old) and _is_placed(new):
        before, after = old.places(), new.places()
        return lambda tensor: tensor.new_zeros(size).scatter_(0, before, tensor).index_select(0, after)
    return lambda tensor: new.pack_values(old.unpack_values(tensor))


def _is_placed(op: object) -> TypeGuard[PlacedOp]:
    kind: type = type(op)
    return _says_places(kind)


@functools.cache
def _says_places(kind: type) -> bool:
    # Looked up once: to compare an object with a protocol takes ten microseconds.
    return issubclass(kind, PlacedOp)
