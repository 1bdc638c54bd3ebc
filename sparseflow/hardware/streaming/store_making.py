"""A parameter comes into a store, or gets another mask there: either is a new file, which counts once committed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sparseflow.hardware.streaming import tiles
from sparseflow.hardware.streaming.slots import Pages, Traffic
from sparseflow.hardware.streaming.store_manifest import Record
from sparseflow.hardware.streaming.store_parameter import Entry, StoredParameter, layout_of
from sparseflow.hardware.streaming.tiles import POINTER, Tile

# A new file of that name and size, all zeros.
MakePages = Callable[[str, int], Pages]


def new_parameter(entry: Entry, number: int, make: MakePages, traffic: Traffic) -> StoredParameter:
    """As the entry has it, with zero state. `ValueError` for a mask or a weight of another shape or dtype."""
    made = _empty(entry.name, entry.shape, entry.mask, entry.keys, number, 0, make, traffic)
    try:
        weight = entry.weight() if callable(entry.weight) else entry.weight
        check_weight(entry.name, entry.shape, weight)
        made.write(weight)
    except BaseException:
        made.pages.remove()
        raise
    return made


def with_mask(old: StoredParameter, mask: Tensor, make: MakePages, traffic: Traffic) -> StoredParameter:
    """The same parameter under another mask: what stays keeps value and state, what comes back begins with zeros."""
    record = old.record
    made = _empty(
        record.name, record.shape, mask, record.keys, record.number, record.generation + 1, make, traffic
    )
    try:
        with made.changing() as slot:
            for key in (None, *record.keys):
                _convert(old, made, slot, key)
    except BaseException:
        made.pages.remove()
        raise
    made.set_steps(record.steps)
    return made


def check_weight(name: str, shape: tuple[int, ...], weight: Tensor) -> None:
    """`ValueError` unless it is what the store holds."""
    if tuple(weight.shape) != tuple(shape) or weight.dtype != torch.float32 or weight.device.type != "cpu":
        raise ValueError(
            f"{name!r} in the store: expected torch.float32 of shape {tuple(shape)} on the CPU, got {weight.dtype} of "
            f"shape {tuple(weight.shape)} on {weight.device}"
        )
