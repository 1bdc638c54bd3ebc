"""A parameter comes into a store, or gets another mask there: either is a new file, which counts once committed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from sparseflow.hardware.streaming import tiles
from sparseflow.hardware.streaming.slots import Pages, Traffic
from sparseflow.hardware.streaming.store_manifest import Record
from sparseflow.hardware.streaming.store_parameter import Entry, StoredParameter, layout_of
from sparseflow.hardware.streaming.tiles import POINTER, Tile, encode

# A new file of that name and size, all zeros.
MakePages = Callable[[str, int], Pages]


def new_parameter(entry: Entry, number: int, make: MakePages, traffic: Traffic) -> StoredParameter:
    """As the entry has it, with zero state. `ValueError` for a mask or a weight of another shape or dtype."""
    made = _empty(entry, number, 0, make, traffic)
    with _removed_after_an_error(made):
        weight = entry.weight() if callable(entry.weight) else entry.weight
        if weight is not None:
            check_weight(entry.name, entry.shape, weight)
            made.write(weight)
    return made


def with_mask(old: StoredParameter, mask: Tensor | None, make: MakePages, traffic: Traffic) -> StoredParameter:
    """The same parameter under another mask: what stays keeps value and state, what comes back begins with zeros."""
    record = old.record
    entry = Entry(record.name, record.shape, mask, None, record.keys)
    made = _empty(entry, record.number, record.generation + 1, make, traffic)
    with _removed_after_an_error(made):
        for key in (None, *record.keys):
            made.put(_converted(old, made, key), key)
    made.steps = record.steps
    return made


def check_weight(name: str, shape: tuple[int, ...], weight: Tensor) -> None:
    """`ValueError` unless it is what the store holds."""
    if tuple(weight.shape) != tuple(shape) or weight.dtype != torch.float32 or weight.device.type != "cpu":
        raise ValueError(
            f"{name!r} in the store: expected torch.float32 of shape {tuple(shape)} on the CPU, got {weight.dtype} of "
            f"shape {tuple(weight.shape)} on {weight.device}"
        )


def _empty(entry: Entry, number: int, generation: int, make: MakePages, traffic: Traffic) -> StoredParameter:
    counts, head, mask = None, 0, entry.mask
    if mask is not None:
        mask = _checked_mask(entry.name, entry.shape, mask)
        counts = tiles.count(mask)
        head = len(counts) * POINTER
    grid = tiles.tiling(entry.shape, counts, head)
    layout = layout_of(grid, head, entry.keys)
    record = Record(
        name=entry.name,
        shape=tuple(entry.shape),
        nnz=layout.nnz,
        index_sha256=None,
        keys=entry.keys,
        number=number,
        generation=generation,
        nbytes=layout.nbytes,
        slot=0,
        steps=0,
    )
    pages = make(record.file, layout.nbytes)
    if mask is not None:
        try:
            sha256 = _write_index(pages, grid, mask)
        except BaseException:
            pages.remove()
            raise
        record = record.model_copy(update={"index_sha256": sha256})
    traffic.add(written=layout.index_bytes)
    return StoredParameter(record, None, pages, traffic)


def _write_index(pages: Pages, grid: tuple[Tile, ...], mask: Tensor) -> str:
    head = np.array([tile.nnz for tile in grid], np.uint32).tobytes()
    sha256 = hashlib.sha256(head)
    pages.write(0, head)
    flat = mask.reshape(-1).numpy()
    for tile in grid:
        part = encode(tile, flat[tile.place : tile.place + tile.places])
        sha256.update(part)
        pages.write(tile.offset, part)
    return sha256.hexdigest()


def _converted(old: StoredParameter, made: StoredParameter, key: str | None) -> Iterator[Tensor]:
    source = old.section(key)
    for (tile, before), (_, after) in zip(old.places(), made.places(), strict=True):
        dense = torch.empty(tile.places)
        tiles.scatter(dense, before, source[tile.value : tile.value + tile.nnz])
        yield tiles.gather(dense, after)


def _checked_mask(name: str, shape: tuple[int, ...], mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool or tuple(mask.shape) != tuple(shape):
        raise ValueError(
            f"the mask of {name!r}: expected torch.bool of shape {tuple(shape)}, got {mask.dtype} of shape "
            f"{tuple(mask.shape)}"
        )
    return mask.detach().cpu().contiguous()


@contextmanager
def _removed_after_an_error(made: StoredParameter) -> Iterator[None]:
    try:
        yield
    except BaseException:
        made.pages.remove()
        raise
