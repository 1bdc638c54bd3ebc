"""Floors: the fewest units that a layer keeps, whatever the criterion and the allocation say."""

from collections.abc import Mapping
from math import ceil

from sparseflow.masks.allocation import Layer
from sparseflow.masks.arguments import match_globs

Floor = int | float | Mapping[str, int | float]
"""Units (int), a fraction of the layer in (0, 1) (float, rounded up), or one of these by name glob."""


def lower_limits(floor: Floor | None, layers: Mapping[str, Layer]) -> dict[str, int | None]:
    """Returns min(floor, units that it can keep) of each layer; None for a layer without a floor.

    Raises ValueError for a floor out of range and for a glob that matches nothing.
    """
    floors: Mapping[str, int | float | None]
    if floor is None:
        floors = dict.fromkeys(layers)
    elif isinstance(floor, Mapping):
        floors = match_globs("floor", layers, floor)
    else:
        floors = dict.fromkeys(layers, floor)
    return {
        name: None if own is None else min(_units(name, own, layers[name].size), layers[name].most)
        for name, own in floors.items()
    }


# Layers that an error names.
_NAMED = 4


def check_floors(lower: Mapping[str, int | None], keep: int) -> None:
    """Raises ValueError where the floors together exceed the number of units to keep."""
    needed = sum(own or 0 for own in lower.values())
    if needed > keep:
        floors = [f"{name} {own:,}" for name, own in lower.items() if own]
        named = ", ".join(floors[:_NAMED]) + (f" and {len(floors) - _NAMED} more" if len(floors) > _NAMED else "")
        raise ValueError(
            f"floor: the floors add up to {needed:,} weights ({named}), but only {keep:,} are to be kept; "
            "lower the floor or prune less"
        )


def check_none_empty(
    kept: Mapping[str, int], layers: Mapping[str, Layer], lower: Mapping[str, int | None], criterion: str
) -> None:
    """Raises ValueError for layers that `kept` empties though they have no floor, not even 0."""
    emptied = [name for name, count in kept.items() if not count and layers[name].kept and lower[name] is None]
    if emptied:
        raise ValueError(
            f"criterion {criterion!r} would leave no weight in {', '.join(emptied)}, which cuts the network; "
            "pass floor=1 or more to keep some in every layer, or floor=0 to allow it"
        )


def _units(name: str, floor: int | float, size: int) -> int:
    if isinstance(floor, int) and not isinstance(floor, bool) and floor >= 0:
        return floor
    if isinstance(floor, float) and 0.0 < floor < 1.0:
        return ceil(floor * size)
    raise ValueError(
        f"floor of {name!r}: expected an int >= 0 (weights) or a float in (0, 1) (fraction of the layer), got {floor!r}"
    )
