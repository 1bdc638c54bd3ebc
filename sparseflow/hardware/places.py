"""Where an op's values belong: masks from it, and tensors taken from one native order to another.

An op that says its values' places is asked once; any other shows them by unpacking.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from sparseflow.hardware.backends import SparseOp
from sparseflow.hardware.backends.base import PlacedOp


def mask_of(op: SparseOp, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bool mask of an op whose values are like these; `shape` is the dense weight's, as the op sees it."""
    places = _places(op)
    if places is None:
        return op.unpack_values(torch.ones_like(values, dtype=torch.float32)) != 0
    mask = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool, device=values.device)
    return mask.index_fill_(0, places, True).view(shape)


def mover(old: SparseOp, new: SparseOp, size: int) -> Callable[[Tensor], Tensor]:
    """Takes tensors from one op's native order to another's; what is new is zero. `size`: of the dense weight."""
    before, after = _places(old), _places(new)
    if before is None or after is None:
        return lambda tensor: new.pack_values(old.unpack_values(tensor))
    # Looked up once for all tensors: which value each new one was, from 1 on; 0 for those that were none.
    count = before.numel()
    numbers = torch.arange(1, count + 1, dtype=torch.int32 if count < 2**31 - 1 else torch.int64, device=before.device)
    origin = numbers.new_zeros(size).scatter_(0, before, numbers).index_select(0, after)
    return lambda tensor: torch.cat([tensor.new_zeros(1), tensor]).index_select(0, origin)


def _places(op: object) -> Tensor | None:
    kind: type = type(op)
    return cast(PlacedOp, op).places() if _says_places(kind) else None


@functools.cache
def _says_places(kind: type) -> bool:
    # Looked up once: to compare an object with a protocol takes ten microseconds.
    return issubclass(kind, PlacedOp)
