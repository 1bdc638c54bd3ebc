"""Allocation: how many units each layer keeps.

`global` is one threshold over all layers (see `select`). The others share out the kept count here, in exact
rational numbers, so that the total is exact and the result the same everywhere.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, prod
from typing import Literal, get_args

from sparseflow.masks.arguments import check_density, check_rate, choose, match_globs

Allocation = Literal["global", "layerwise", "uniform", "erk"]


@dataclass(frozen=True)
class Layer:
    """What allocation knows of a parameter: its shape, its number of units, and how many are kept.

    limit: how many of those the pattern lets it keep, None where it lets all.
    """

    shape: Sequence[int]
    size: int
    kept: int
    limit: int | None = None

    @property
    def most(self) -> int:
        """The most units that it can keep."""
        return self.kept if self.limit is None else self.limit


def check_amounts(
    allocation: str, density: float | None, rate: float | None, rates: Mapping[str, float] | None
) -> None:
    """Raises ValueError unless the allocation is known and the amounts to prune fit it and their ranges."""
    choose("allocation", allocation, dict.fromkeys(get_args(Allocation)))
    if density is not None:
        check_density(density)
    if rate is not None:
        check_rate(rate)
    if allocation == "layerwise":
        if density is not None or (rate is None and rates is None):
            raise ValueError(
                "allocation 'layerwise' takes rate, rates or both, and no density; "
                "for the same density in every layer pass allocation='uniform'"
            )
        return
    if rates is not None:
        raise ValueError(f"rates needs allocation='layerwise', got {allocation!r}")
    if (density is None) == (rate is None):
        raise ValueError(f"pass exactly one of density and rate; got density={density}, rate={rate}")


def keep_total(layers: Mapping[str, Layer], density: float | None, rate: float | None) -> int:
    """Returns how many units all layers keep together; ValueError where `density` exceeds the current one."""
    size = sum(layer.size for layer in layers.values())
    kept = sum(layer.kept for layer in layers.values())
    if density is None:
        assert rate is not None
        keep = kept - round(rate * kept)
    else:
        keep = round(density * size)
    if keep > kept:
        raise ValueError(
            f"density {density} keeps {keep:,} of {size:,} weights, but only {kept:,} are left "
            f"(density {kept / size:.6g}), and pruned weights never return; pass a lower density"
        )
    _check_limit("the network", keep, sum(layer.most for layer in layers.values()), size)
    return keep


def layerwise_counts(
    layers: Mapping[str, Layer], rate: float | None, rates: Mapping[str, float] | None
) -> dict[str, int]:
    """Returns how many units each layer keeps after `k -= round_half_even(rate · k)`, before floors.

    A layer's rate is that of the first glob in `rates` that matches its name, else `rate`. Raises ValueError
    for a glob that matches nothing and, where `rate` is None, for layers that no glob matches.
    """
    rates = rates or {}
    for glob, own in rates.items():
        check_rate(own, f"rates[{glob!r}]")
    by_layer = match_globs("rates", layers, rates)
    unmatched = [name for name, own in by_layer.items() if own is None]
    if rate is None and unmatched:
        raise ValueError(
            f"rates: no glob matches {', '.join(unmatched)}; add one, or pass rate= for all others "
            "(rate=0.0 leaves them as they are)"
        )
    counts = {}
    for name, layer in layers.items():
        matched = by_layer[name]
        layer_rate = (rate or 0.0) if matched is None else matched
        counts[name] = layer.kept - round(layer_rate * layer.kept)
        _check_limit(repr(name), counts[name], layer.most, layer.size)
    return counts


def _check_limit(what: str, keep: int, most: int, size: int) -> None:
    if keep > most:
        raise ValueError(
            f"pattern: it lets {what} keep at most {most:,} of {size:,} weights (density {most / size:.6g}), and "
            f"{keep:,} were to stay; pass a lower density or a higher rate"
        )


def uniform_weights(layers: Mapping[str, Layer]) -> dict[str, Fraction]:
    """Returns each layer's share before limits: its size, for the same density everywhere."""
    return {name: Fraction(layer.size) for name, layer in layers.items()}


def erk_weights(layers: Mapping[str, Layer]) -> dict[str, Fraction]:
    """Returns each layer's share before limits, Erdős-Rényi-Kernel: density ∝ sum(shape) / prod(shape).

    Evci et al., 2020 (arXiv:1911.11134), after Mocanu et al., 2018; for a convolution the sum runs over out,
    in and both kernel sides.
    """
    return {name: Fraction(sum(layer.shape) * layer.size, max(prod(layer.shape), 1)) for name, layer in layers.items()}


def erk_densities(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Returns each layer's density under ERK before it is rounded to a count.

    A layer whose density would exceed 1 is dense, and the others take its excess: the mean over all weights
    is `density`.
    """
    check_density(density)
    layers = {name: Layer(shape, prod(shape), prod(shape)) for name, shape in shapes.items()}
    sizes = {name: layer.size for name, layer in layers.items()}
    total = Fraction(density) * sum(sizes.values())
    shares = _clamped_shares(erk_weights(layers), dict.fromkeys(sizes, 0), sizes, total)
    return {name: float(share / sizes[name]) if sizes[name] else 1.0 for name, share in shares.items()}


def share_out(
    weights: Mapping[str, Fraction], lower: Mapping[str, int], upper: Mapping[str, int], total: int
) -> dict[str, int]:
    """Returns counts that sum to `total`, proportional to `weights` between `lower` and `upper`.

    What a layer at a limit cannot take or give up goes to the others in proportion; fractions are settled by
    largest remainder, the first layer winning a tie. Expects sum(lower) <= total <= sum(upper).
    """
    shares = _clamped_shares(weights, lower, upper, Fraction(total))
    counts = {name: floor(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _clamped_shares(
    weights: Mapping[str, Fraction], lower: Mapping[str, int], upper: Mapping[str, int], total: Fraction
) -> dict[str, Fraction]:
    """Returns min(max(scale · weight, lower), upper) for the scale at which they sum to `total`."""
    assert sum(lower.values()) <= total <= sum(upper.values())

    def shares(scale: Fraction) -> dict[str, Fraction]:
        return {
            name: min(max(scale * weight, Fraction(lower[name])), Fraction(upper[name]))
            for name, weight in weights.items()
        }

    # The sum grows linearly between the scales at which a layer meets one of its limits.
    bends = sorted(
        {Fraction(limit[name]) / weight for limit in (lower, upper) for name, weight in weights.items() if weight}
        | {Fraction(0)}
    )
    index = bisect_left(bends, total, key=lambda scale: sum(shares(scale).values(), Fraction(0)))
    below, above = shares(bends[max(index - 1, 0)]), shares(bends[index])
    start = sum(below.values())
    span = sum(above.values()) - start
    part = (total - start) / span if span else Fraction(0)
    return {name: share + part * (above[name] - share) for name, share in below.items()}
