"""Where the kept weights of a sparse matrix lie for the GPU: rows sorted by length, cut into pieces, bound in slices.

This is SELL-C-σ (Kreutzer et al., 2014, arXiv:1307.6209, section 3) with σ the whole matrix, and with two departures: a
row that is much longer than the others is cut into pieces, and the nonzeros of a lane stand in groups of `GROUP`, so
that a thread reads a group's columns, or its values, as one word.

A slice is `height` lanes; a lane is a row, or a piece of one. Place of a nonzero, called its slot:

    slot = starts[slice] + ((step // GROUP) * height + lane) * GROUP + step % GROUP

Columns ascend within a lane, so that the lanes of a slice walk through the columns of x together, in a band.

Shapes: O rows, K columns, Z kept weights, S slices, R lanes of a slice, P pieces of rows that were split.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

# Steps of a lane that stand side by side.
GROUP = 4
# Rows are split only where they are longer than this, and than so many times the mean.
_LEAST_CAP, _MEANS = 256, 4
# Columns that 16 bits can name.
_NARROW = 1 << 16


@dataclass(frozen=True, eq=False)
class Slices:
    """The structure of one sparse (O, K) matrix. Its lanes are sorted by length, the longest first."""

    rows: int
    columns: int
    # R, a power of two.
    height: int
    # Steps of the longest lane.
    steps: int
    # int32 (S R,): the row that a lane adds to; rows + p for piece p of a split row; -1 for a lane of padding.
    targets: Tensor
    # int32 (S R,): the row that each lane is, or is a piece of; 0 for a lane of padding.
    lane_rows: Tensor
    # int32 (S R,): nonzeros of each lane.
    lengths: Tensor
    # int64 (S + 1,): the first slot of each slice.
    starts: Tensor
    # (slots,): column of each slot, 0 at padding: int16 that hold the bits of uint16 where K <= 65536, else int32.
    index: Tensor
    # int32 (slots,): place of the slot's value in canonical order, -1 at padding.
    source: Tensor
    # int32 (rows that were split,) and (that + 1,): those rows, and the first piece of each.
    split_rows: Tensor
    split_starts: Tensor
    # P.
    pieces: int

    @property
    def slots(self) -> int:
        return self.index.shape[0]

    @property
    def count(self) -> int:
        """S."""
        return self.starts.shape[0] - 1

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The index tensors by name, to be moved or saved."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def with_tensors(self, tensors: dict[str, Tensor]) -> Slices:
        """The same structure over those tensors."""
        changes: dict[str, Any] = {name: tensors[name] for name in self.tensors()}
        return replace(self, **changes)


def slices(
    rows: Tensor, columns: Tensor, places: Tensor, shape: tuple[int, int], height: int, cap: int | None = None
) -> Slices:
    """The structure of the nonzeros (rows[z], columns[z]), int64 (Z,), sorted by row and then column, none twice.

    `places`: int64 (Z,), where the value of each stands in canonical order. `cap`: steps of a lane at most; by default
    256, or four times the mean length of a row where that is more. Runs on the device of `rows`, and waits for it
    twice. `ValueError` where `height` is no power of two or numbers do not fit in 32 bits.
    """
    _check(rows, shape, height)
    count = rows.numel()
    cap = cap or max(_LEAST_CAP, _MEANS * -(-count // max(shape[0], 1)))
    lanes = _lanes(rows, shape[0], cap)
    order = lanes.lengths.argsort(descending=True, stable=True)
    number = -(-lanes.lengths.numel() // height)
    padding = number * height - order.numel()
    lengths = _padded(lanes.lengths[order], padding, 0)
    # The first lane of a slice is its longest.
    groups = -(-lengths[::height] // GROUP)
    starts = torch.zeros(number + 1, dtype=torch.int64, device=rows.device)
    starts[1:] = (groups * (GROUP * height)).cumsum(0)
    slots, steps = torch.stack([starts[-1], lengths[:1].sum()]).tolist()
    _check_count("places in a slice", steps * height)
    slot = _slots(rows, lanes, order.argsort(), starts, height)
    narrow = torch.int16 if shape[1] <= _NARROW else torch.int32
    return Slices(
        shape[0],
        shape[1],
        height,
        steps,
        _padded(lanes.targets[order], padding, -1).int(),
        _padded(lanes.rows[order], padding, 0).int(),
        lengths.int(),
        starts,
        torch.zeros(slots, dtype=narrow, device=rows.device).index_copy_(0, slot, columns.to(narrow)),
        torch.full((slots,), -1, dtype=torch.int32, device=rows.device).index_copy_(0, slot, places.int()),
        lanes.split_rows.int(),
        lanes.split_starts.int(),
        lanes.pieces,
    )


@dataclass(frozen=True)
class _Lanes:
    """Rows and pieces of rows, in the order of the rows; int64 throughout."""

    # Per row: where its nonzeros begin, its first lane, and the steps of each of its lanes.
    pointers: Tensor
    first: Tensor
    size: Tensor
    # Per lane.
    lengths: Tensor
    rows: Tensor
    targets: Tensor
    split_rows: Tensor
    split_starts: Tensor
    pieces: int


def _lanes(rows: Tensor, count: int, cap: int) -> _Lanes:
    """Every row in equal pieces of at most `cap` nonzeros; an empty row in one of none."""
    numbers = torch.arange(count + 1, device=rows.device)
    pointers = torch.searchsorted(rows, numbers)
    lengths = pointers.diff()
    pieces = (-(-lengths // cap)).clamp(min=1)
    size = -(-lengths // pieces)
    is_split = pieces > 1
    first = pieces.cumsum(0) - pieces
    # Numbers of lanes, of rows that are split, and of their pieces: one wait for all three.
    every, split, scratch = torch.stack([pieces.sum(), is_split.sum(), (pieces * is_split).sum()]).tolist()
    row = numbers[:-1].repeat_interleave(pieces, output_size=every)
    piece = torch.arange(every, device=rows.device) - first[row]
    split_first = (pieces * is_split).cumsum(0) - pieces
    split_rows = is_split.logical_not().argsort(stable=True)[:split]
    return _Lanes(
        pointers,
        first,
        size,
        lengths=torch.minimum(size[row], lengths[row] - piece * size[row]),
        rows=row,
        targets=torch.where(is_split[row], count + split_first[row] + piece, row),
        split_rows=split_rows,
        split_starts=_padded(split_first[split_rows], 1, scratch),
        pieces=scratch,
    )


def _slots(rows: Tensor, lanes: _Lanes, position: Tensor, starts: Tensor, height: int) -> Tensor:
    """The slot of each nonzero; `position`: of each lane among the sorted ones."""
    within = torch.arange(rows.numel(), device=rows.device) - lanes.pointers[rows]
    piece = within // lanes.size[rows]
    step = within - piece * lanes.size[rows]
    place = position[lanes.first[rows] + piece]
    group = step // GROUP * height + place % height
    return starts[place // height] + group * GROUP + step % GROUP


def _padded(tensor: Tensor, count: int, value: int) -> Tensor:
    return torch.cat([tensor, tensor.new_full((count,), value)])


def _check(rows: Tensor, shape: tuple[int, int], height: int) -> None:
    if height < 1 or height & (height - 1):
        raise ValueError(f"expected a height of 1, 2, 4, ... lanes, got {height}")
    for what, number in (("nonzeros", rows.numel()), ("rows", shape[0]), ("columns", shape[1])):
        _check_count(what, number)


def _check_count(what: str, number: int) -> None:
    if number >= 2**31:
        raise ValueError(f"expected fewer than 2**31 {what}, got {number}; use the backend 'dense-compact'")
