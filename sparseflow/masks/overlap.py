"""What masks share, beside what masks drawn at random would: of k masks of density d, d^k of all weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from torch import Tensor


@dataclass(frozen=True)
class Overlap:
    """Weights that all masks keep. `shared`: as a fraction of all weights; `of_kept`: of those that one mask keeps.

    `chance` is what `shared` would be for random masks of the same densities, the product of those of the networks;
    `layered` for random masks of the same densities in each layer, which say nothing yet of single weights.
    """

    shared: float
    of_kept: float
    chance: float
    layered: float

    @property
    def over_chance(self) -> float:
        """How many times as many as by chance within layers; 1 is chance. NaN where chance alone shares nothing."""
        return self.shared / self.layered if self.layered else math.nan


def overlap_of(tickets: Sequence[Mapping[str, Tensor]]) -> Overlap:
    """The overlap of two or more masks of one network: Vandersmissen & Oramas, 2023 (arXiv:2302.11244), §5.

    `of_kept` is over the mean number of kept weights. `ValueError` for masks of other names or shapes, or that keep
    nothing.
    """
    if len(tickets) < 2:
        raise ValueError(f"overlap: expected two masks or more, got {len(tickets)}")
    shapes = {name: mask.shape for name, mask in tickets[0].items()}
    if any({name: mask.shape for name, mask in other.items()} != shapes for other in tickets[1:]):
        raise ValueError("expected tickets of the same network, got masks of other names or shapes")
    total = sum(shape.numel() for shape in shapes.values())
    kept = [{name: int(mask.count_nonzero()) for name, mask in ticket.items()} for ticket in tickets]
    counts = [sum(each.values()) for each in kept]
    if not all(counts):
        raise ValueError("overlap: expected masks that keep at least one weight each")
    both = sum(int(reduce(lambda a, b: a & b, (t[name] for t in tickets)).count_nonzero()) for name in shapes)
    layered = sum(
        shape.numel() * math.prod(each[name] / shape.numel() for each in kept)
        for name, shape in shapes.items()
        if shape.numel()
    )
    return Overlap(
        shared=both / total,
        of_kept=both / (sum(counts) / len(counts)),
        chance=math.prod(count / total for count in counts),
        layered=layered / total,
    )


def sign_agreement(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], masks: Sequence[Mapping[str, Tensor]]
) -> float:
    """Of the weights that all masks keep, the fraction whose signs agree; 0.5 is chance, NaN where they keep none.

    Zero is a sign of its own.
    """
    agree = count = 0
    for name in masks[0]:
        kept = reduce(lambda a, b: a & b, (one[name] for one in masks))
        count += int(kept.count_nonzero())
        agree += int((first[name].sign() == second[name].sign())[kept].count_nonzero())
    return agree / count if count else math.nan
