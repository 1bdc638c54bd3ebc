"""Slices: parts of flattened parameters, as shards of a model hold them, and who holds which."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from sparseflow.masks.arguments import unknown
from sparseflow.masks.keys import DTYPES
from sparseflow.ranks import ALONE, Ranks

# What slices hold, weights or masks, as a number.
_KINDS = (*DTYPES, torch.bool)


@dataclass(frozen=True)
class Slice:
    """Consecutive values of a flattened parameter: a flat tensor of weights, or of a mask, without any padding.

    start: the index of the first one in the flattened (row-major) whole parameter.
    """

    name: str
    start: int
    values: Tensor

    @property
    def stop(self) -> int:
        """The index after the last one."""
        return self.start + self.values.numel()

    @property
    def place(self) -> tuple[str, int, int]:
        """Name, start and stop: what two slices of the same part have in common."""
        return self.name, self.start, self.stop


def cut(tensors: Mapping[str, Tensor], like: Iterable[Slice]) -> list[Slice]:
    """Returns the same parts of whole tensors as `like` are of theirs: the shards of masks loaded from a file."""
    return [Slice(part.name, part.start, tensors[part.name].reshape(-1)[part.start : part.stop]) for part in like]


def cut_evenly(tensors: Mapping[str, Tensor], ranks: Ranks = ALONE) -> list[Slice]:
    """Returns this rank's share of whole tensors that every rank holds: of each one part, as even as can be."""
    slices = []
    for name, tensor in tensors.items():
        start, stop = (tensor.numel() * rank // ranks.world for rank in (ranks.rank, ranks.rank + 1))
        slices.append(Slice(name, start, tensor.detach().reshape(-1)[start:stop]))
    return slices


@dataclass(frozen=True)
class Layout:
    """Who holds what.

    order: the parameter of each slice of all ranks, by parameter and then by start. places: the index in it of each
    slice here. dtypes: those of all slices of all ranks.
    """

    order: list[str]
    places: list[int]
    dtypes: set[torch.dtype]


def lay_out(slices: Sequence[Slice], shapes: Mapping[str, Sequence[int]], ranks: Ranks = ALONE) -> Layout:
    """Returns the layout of the slices of all ranks; every rank calls it with its own, for which `check_slices` passed.

    Raises the same ValueError on every rank for weights that no slice holds or more than one. Gathers about 30 bytes
    a slice.
    """
    numbers = {name: number for number, name in enumerate(shapes)}
    # One flat list: JSON of half the size.
    own = [
        number
        for part in slices
        for number in (numbers[part.name], part.start, part.stop, _KINDS.index(part.values.dtype))
    ]
    everybody = ranks.gather(own)
    # An empty slice sorts before the one that begins where it does.
    entries = sorted(
        (*flat[4 * index : 4 * index + 3], rank, index)
        for rank, flat in enumerate(everybody)
        for index in range(len(flat) // 4)
    )
    names = list(shapes)
    _check_cover([(names[number], start, stop) for number, start, stop, _, _ in entries], shapes)
    places = {index: place for place, (*_, rank, index) in enumerate(entries) if rank == ranks.rank}
    return Layout(
        order=[names[entry[0]] for entry in entries],
        places=[places[index] for index in range(len(slices))],
        dtypes={_KINDS[kind] for flat in everybody for kind in flat[3::4]},
    )


def check_slices(slices: Sequence[Slice], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises ValueError for a slice of no parameter in `shapes`, one that is not flat, and one that ends beyond it."""
    for part in slices:
        if part.name not in shapes:
            raise ValueError(f"slice: {unknown('parameter', part.name, shapes)}")
        if part.values.ndim != 1:
            raise ValueError(
                f"slice of {part.name!r}: expected a flat tensor, got shape {tuple(part.values.shape)}; "
                "pass values.reshape(-1)"
            )
        size = prod(shapes[part.name])
        if part.start < 0 or part.stop > size:
            raise ValueError(
                f"slice of {part.name!r}: expected a part of its {size:,} weights, got {part.start:,} to "
                f"{part.stop:,}; leave the shard's padding out"
            )


def _check_cover(places: Sequence[tuple[str, int, int]], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises ValueError unless the slices, sorted, hold every weight just once."""
    reached = dict.fromkeys(shapes, 0)
    for name, start, stop in places:
        if start < reached[name] and stop > start:
            raise ValueError(
                f"slices of {name!r}: weights {start:,} to {min(stop, reached[name]):,} are in more than one; "
                "where ranks hold the same weights, pass each weight once, as from cut_evenly"
            )
        if start > reached[name] and stop > start:
            break
        reached[name] = max(reached[name], stop)
    for name, shape in shapes.items():
        if reached[name] < prod(shape):
            raise ValueError(
                f"slices of {name!r}: expected all {prod(shape):,} weights over all ranks, none holds weight "
                f"{reached[name]:,}"
            )
