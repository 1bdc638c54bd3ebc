"""Where each parameter lies in the flat shards of a ZeRO checkpoint, from sizes alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil


@dataclass(frozen=True)
class Run:
    """`count` weights of a parameter from index `start` on: elements from `offset` on of a rank's flat tensor."""

    name: str
    start: int
    rank: int
    flat: int
    offset: int
    count: int


def runs_of_groups(
    groups: Sequence[Mapping[str, int]], sizes: Sequence[Sequence[int]], paddings: Sequence[Sequence[int]] | None
) -> Iterator[Run]:
    """Stages 1 and 2: the parameters of a group one behind the other, cut into one flat tensor a rank.

    groups: of each, parameter → number of weights, in order. sizes: of the flat tensor of each rank and group.
    paddings: of each group, the elements between each parameter and the next. ValueError where the flat tensors are
    too short.
    """
    for number, group in enumerate(groups):
        bounds = list(accumulate((own[number] for own in sizes), initial=0))
        gaps = paddings[number] if paddings is not None else [0] * len(group)
        begin = 0
        for (name, numel), gap in zip(group.items(), gaps, strict=True):
            _check_room(name, begin + numel, bounds[-1])
            for rank, (low, high) in enumerate(pairwise(bounds)):
                first, last = max(begin, low), min(begin + numel, high)
                if first < last:
                    yield Run(name, first - begin, rank, number, first - low, last - first)
            begin += numel + gap


def runs_of_parameters(numels: Mapping[str, int], sizes: Sequence[int], world: int) -> Iterator[Run]:
    """Stage 3: each parameter cut into `world` parts of one size, the last ones padded, one behind the other.

    numels: parameter → number of weights, in order. sizes: of the flat tensors of a rank, the same on each, which
    hold the rank's parts one behind the other. ValueError where they are too short.
    """
    bounds = list(accumulate(sizes, initial=0))
    begin = 0
    for name, numel in numels.items():
        size = ceil(numel / world)
        _check_room(name, begin + size, bounds[-1])
        for rank in range(world):
            end = begin + max(0, min(size, numel - rank * size))
            for flat, (low, high) in enumerate(pairwise(bounds)):
                first, last = max(begin, low), min(end, high)
                if first < last:
                    yield Run(name, rank * size + first - begin, rank, flat, first - low, last - first)
        begin += size


def _check_room(name: str, needed: int, there: int) -> None:
    if needed > there:
        raise ValueError(f"{name!r} ends at element {needed:,} of the flat weights, which have {there:,}")
