"""Which units each layer keeps: the algorithm that pruning in one process and pruning over shards share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from sparseflow.masks.allocation import (
    Allocation,
    Layer,
    check_amounts,
    erk_weights,
    keep_total,
    layerwise_counts,
    share_out,
    uniform_weights,
)
from sparseflow.masks.criteria import Scores
from sparseflow.masks.floors import Floor, check_floors, check_none_empty, lower_limits
from sparseflow.masks.pieces import Pieces
from sparseflow.masks.threshold import Group, apply_thresholds, find_thresholds


@dataclass(frozen=True)
class Amounts:
    """How much is pruned, and where: the arguments of `prune_tensors`, which describes them.

    Raises ValueError for numbers out of range and for those that do not fit the allocation.
    """

    density: float | None = None
    rate: float | None = None
    allocation: Allocation = "global"
    rates: Mapping[str, float] | None = None
    floor: Floor | None = None

    def __post_init__(self) -> None:
        check_amounts(self.allocation, self.density, self.rate, self.rates)


def keep_units(pieces: Pieces, layers: Mapping[str, Layer], amounts: Amounts, criterion: str) -> dict[int, Tensor]:
    """Returns the units to keep, bool, of each piece here, by its place.

    layers: all of them, in the order of `pieces.order`, also where nothing of one is here. Raises ValueError, on
    every process, for scores that are not finite and for amounts that the layers cannot meet.
    """
    lower = lower_limits(amounts.floor, layers)
    if amounts.allocation == "global":
        keep = keep_total(layers, amounts.density, amounts.rate)
        check_floors(lower, keep)
        units = _keep_globally(pieces, layers, lower, keep)
    else:
        units = _drop_lowest(pieces, _own_groups(layers, _counts(layers, lower, amounts)))
    check_none_empty(pieces.kept(list(layers), units), layers, lower, criterion)
    return units


def drop_lowest(scores: Scores, survivors: Mapping[str, Tensor], drops: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns the survivors of each layer without so many of its lowest scores.

    Of equal scores the lowest index goes first. Raises ValueError for scores that are not finite.
    """
    pieces = Pieces.whole(scores, survivors)
    kept = _drop_lowest(pieces, [Group([name], drop) for name, drop in drops.items()])
    return {piece.layer: kept[piece.place] for piece in pieces.here}


def _counts(layers: Mapping[str, Layer], lower: Mapping[str, int | None], amounts: Amounts) -> dict[str, int]:
    """Returns how many units each layer keeps, for every allocation but `global`."""
    if amounts.allocation == "layerwise":
        wanted = layerwise_counts(layers, amounts.rate, amounts.rates)
        total, shares = sum(wanted.values()), {name: Fraction(count) for name, count in wanted.items()}
    else:
        total = keep_total(layers, amounts.density, amounts.rate)
        shares = erk_weights(layers) if amounts.allocation == "erk" else uniform_weights(layers)
    check_floors(lower, total)
    limits = {name: own or 0 for name, own in lower.items()}
    return share_out(shares, limits, {name: layer.most for name, layer in layers.items()}, total)


def _keep_globally(
    pieces: Pieces, layers: Mapping[str, Layer], lower: Mapping[str, int | None], keep: int
) -> dict[int, Tensor]:
    """Returns the `keep` units with the highest scores, where layers below their floor keep just that.

    A layer at its floor takes from the others, which may bring one of those below its own: at most one pass a
    layer.
    """
    held: dict[str, int] = {}
    while True:
        free = [name for name in layers if name not in held]
        drop = sum(layers[name].most for name in free) - (keep - sum(held.values()))
        units = _drop_lowest(pieces, [Group(free, drop)])
        floors = {name: lower[name] or 0 for name in free}
        if not any(floors.values()):
            break
        short = {name: floors[name] for name, kept in pieces.kept(free, units).items() if kept < floors[name]}
        if not short:
            break
        held |= short
    return units | _drop_lowest(pieces, _own_groups(layers, held))


def _own_groups(layers: Mapping[str, Layer], counts: Mapping[str, int]) -> list[Group]:
    """Returns one group for each layer in `counts`, which keeps that many units."""
    return [Group([name], layers[name].most - count) for name, count in counts.items()]


def _drop_lowest(pieces: Pieces, groups: Sequence[Group]) -> dict[int, Tensor]:
    """Returns the survivors of each group without the lowest scores among them."""
    return apply_thresholds(pieces, groups, find_thresholds(pieces, groups)) if groups else {}
