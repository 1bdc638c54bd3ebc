"""A sparse matrix cut into panels of rows, each packed densely over the columns in which it keeps anything.

A panel is what tensor cores can multiply: `height` rows times the union of their columns, zeros included. Of a random
mask with density d a panel of R rows keeps 1 - (1 - d)^R of the columns, so that this pays above 98 % sparsity only.
Gathering rows of the input by column in front of a dense tile goes back to Hong et al., 2019 (ASpT) and Jiang et al.,
2020; nothing is reordered here.

Shapes: O rows, K columns, Z nnz, P panels, S slots (columns of all panels, each panel padded to whole steps), R height.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

HEIGHTS = (64, 128)
# Slots of a step, the most that a kernel multiplies at once, and slots that lie together in the packed weights.
STEP = 64
CHUNK = 32
_WORD = 32


@dataclass(frozen=True, eq=False)
class Panels:
    """The structure of one (O, K) mask in one orientation. Tensors lie on the device of the mask.

    The packed weights are S * R numbers: of each chunk of slots R rows of CHUNK numbers.
    """

    rows: int
    columns: int
    height: int
    # Slots of the longest panel.
    longest: int
    # int32 (P + 1,): the first slot of each panel, a multiple of STEP.  int32 (P,): its slots that are no padding.
    starts: Tensor
    widths: Tensor
    # int16 (holding the bits of a uint16) where K <= 65536, else int32; (S,): the column, 0 at padding.
    index: Tensor
    # The nonzeros in order of slot and row.  int32 (Z,): canonical place of each; its place in the packed weights.
    source: Tensor
    target: Tensor
    # int32 (S, R / 32): one bit for each row, set where kept; the first nonzero of these 32 in the order of slots.
    kept: Tensor
    first: Tensor

    @property
    def count(self) -> int:
        return self.widths.numel()

    @property
    def slots(self) -> int:
        return self.index.numel()

    @property
    def nnz(self) -> int:
        return self.source.numel()

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name of field."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def with_tensors(self, tensors: dict[str, Tensor]) -> Panels:
        """The same structure with its tensors elsewhere."""
        changes: dict[str, Any] = {name: tensors[name] for name in self.tensors()}
        return replace(self, **changes)


def panels(rows: Tensor, columns: Tensor, places: Tensor, shape: tuple[int, int], height: int) -> Panels:
    """The panels of the nonzeros at (rows, columns), int64 (Z,) in any order; `places`: where their values stand.

    Works on the device of its arguments, which it waits for once. `ValueError` where 32-bit indices do not suffice.
    """
    if height not in HEIGHTS:
        raise ValueError(f"height: expected one of {HEIGHTS}, got {height}")
    count, width = -(-shape[0] // height), shape[1]
    key = rows // height * width + columns
    used = torch.zeros(count * width, dtype=torch.bool, device=rows.device)
    used[key] = True
    ranks = used.view(count, width).cumsum(1)
    widths = ranks[:, -1] if width else ranks.new_zeros(count)
    padded = (widths + STEP - 1) // STEP * STEP
    starts = torch.cat([padded.new_zeros(1), padded.cumsum(0)])
    slots, longest = torch.stack([starts[-1], padded.max()]).tolist()
    if slots * height >= 2**31:
        raise ValueError(f"{slots * height} packed weights: expected fewer than 2**31; use smaller panels or dense")
    slot_of = (ranks - 1 + starts[:-1, None]).view(-1)
    order = _Order.of(slot_of[key], rows % height, slots, height)
    return Panels(
        rows=shape[0],
        columns=width,
        height=height,
        longest=longest,
        starts=starts.int(),
        widths=widths.int(),
        index=_index(used, slot_of, slots, width),
        source=places[order.by_slot].int(),
        target=order.target.int(),
        kept=order.kept,
        first=order.first,
    )


@dataclass(frozen=True, eq=False)
class _Order:
    by_slot: Tensor
    target: Tensor
    kept: Tensor
    first: Tensor

    @staticmethod
    def of(slots_Z: Tensor, lanes_Z: Tensor, slots: int, height: int) -> _Order:
        """The nonzeros sorted by slot and by row (lane) in it."""
        cell, by_slot = (slots_Z * height + lanes_Z).sort()
        slot, lane = cell // height, cell % height
        words = slots * height // _WORD
        word = cell // _WORD
        ones = torch.ones_like(cell)
        counts = torch.zeros(words, dtype=torch.int64, device=cell.device).scatter_add_(0, word, ones)
        bits = torch.zeros_like(counts).scatter_add_(0, word, ones << (lane % _WORD))
        # The bits of a uint32 as an int32.
        kept = torch.where(bits >= 2**31, bits - 2**32, bits).int()
        first = (counts.cumsum(0) - counts).int()
        target = (slot // CHUNK * height + lane) * CHUNK + slot % CHUNK
        shape = (slots, height // _WORD)
        return _Order(by_slot, target, kept.view(shape), first.view(shape))


def _index(used: Tensor, slot_of: Tensor, slots: int, width: int) -> Tensor:
    """The column of each slot, 0 at padding. Without a count of what is used, for which the host would wait."""
    column = torch.arange(used.numel(), device=used.device) % max(width, 1)
    # Whatever is unused goes to one place more, which is cut off.
    index = column.new_zeros(slots + 1).scatter_(0, torch.where(used, slot_of, slots), column)[:slots]
    # The bits of a uint16 as an int16.
    return torch.where(index >= 2**15, index - 2**16, index).to(torch.int16) if width <= 2**16 else index.int()
