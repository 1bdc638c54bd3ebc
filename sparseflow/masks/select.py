"""Selection: joins criterion, pattern, allocation and floors. Tensors in, masks out."""

from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from sparseflow.masks import criteria
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
from sparseflow.masks.criteria import Criterion, Scores
from sparseflow.masks.floors import Floor, check_floors, check_none_empty, lower_limits
from sparseflow.masks.masks import Masks
from sparseflow.masks.patterns import UNSTRUCTURED, Pattern
from sparseflow.masks.threshold import apply_threshold, find_threshold


def prune_tensors(
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    *,
    density: float | None = None,
    rate: float | None = None,
    criterion: str | Criterion = "magnitude",
    pattern: Pattern = UNSTRUCTURED,
    allocation: Allocation = "global",
    rates: Mapping[str, float] | None = None,
    floor: Floor | None = None,
    seed: int = 0,
) -> Masks:
    """Returns the masks of the weights to keep, a subset of `masks`: what is pruned never returns.

    weights: all prunable weights by parameter name. masks: what is kept so far, of the same names; None: all.
    density: the fraction of all weights to keep; rate: the fraction of the kept ones to prune. Exactly one of
    them, or, for `layerwise`, `rates` (name glob → rate, first match wins) with `rate` for the layers that no
    glob matches. Counts are exact: round half even of density · total or of rate · kept; per layer for
    `layerwise`. floor: the fewest weights a layer keeps, see `Floor`; the others then give up more.

    Equal scores are pruned lowest index first, in the order of `weights`. Raises ValueError for a number out
    of range, a density above the current one, scores that are not finite, floors that exceed the target, and
    layers that would keep nothing without a floor. Memory above the scores: the masks and one chunk.
    """
    check_amounts(allocation, density, rate, rates)
    score = criteria.get(criterion)
    masks = _checked_masks(weights, masks)
    with torch.no_grad():
        scores = pattern.unit_scores(_checked_scores(score(weights, seed), weights), masks)
        survivors = None if masks is None else {name: pattern.units(mask) for name, mask in masks.items()}
        layers = _layers(weights, scores, survivors)
        lower = lower_limits(floor, layers)
        if allocation == "global":
            keep = keep_total(layers, density, rate)
            check_floors(lower, keep)
            units = _keep_globally(scores, survivors, layers, lower, keep)
        else:
            counts = _counts(layers, lower, allocation, density, rate, rates)
            units = _keep_counts(scores, survivors, layers, counts)
        check_none_empty(_kept(units), layers, lower, str(criterion))
        kept = {name: pattern.elements(unit, weights[name].shape) for name, unit in units.items()}
        return Masks(kept if masks is None else {name: mask & masks[name] for name, mask in kept.items()})


def shuffle_masks(masks: Mapping[str, Tensor], seed: int) -> Masks:
    """Returns masks that keep as many weights of each parameter as `masks` does, at random places.

    The control "same layer densities, other places". A parameter's places depend on the seed, its name, shape
    and kept count alone. Costs 8 bytes a weight of the largest parameter.
    """
    shuffled = {}
    for name, mask in masks.items():
        places = torch.randperm(mask.numel(), generator=criteria.parameter_generator(seed, name))
        flat = torch.zeros(mask.numel(), dtype=torch.bool)
        flat[places[: int(mask.count_nonzero())]] = True
        shuffled[name] = flat.view(mask.shape).to(mask.device)
    return Masks(shuffled)


def _checked_masks(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    if not weights:
        raise ValueError("weights: expected at least one prunable parameter, got none")
    if masks is None:
        return None
    Masks(masks).check({name: weight.shape for name, weight in weights.items()})
    missing = [name for name in weights if name not in masks]
    if missing:
        raise ValueError(f"masks: expected one for every weight, got none for {', '.join(missing)}")
    return {name: masks[name].to(weight.device) for name, weight in weights.items()}


def _checked_scores(scores: Scores, weights: Mapping[str, Tensor]) -> Scores:
    for name, weight in weights.items():
        if name not in scores.tensors or scores.tensors[name].shape != weight.shape:
            got = tuple(scores.tensors[name].shape) if name in scores.tensors else "none"
            raise ValueError(f"criterion: expected a score of shape {tuple(weight.shape)} for {name!r}, got {got}")
    return Scores({name: scores.tensors[name] for name in weights}, scores.absolute)


def _layers(weights: Mapping[str, Tensor], scores: Scores, survivors: Mapping[str, Tensor] | None) -> dict[str, Layer]:
    sizes = {name: tensor.numel() for name, tensor in scores.tensors.items()}
    kept = sizes if survivors is None else _kept(survivors)
    return {name: Layer(tuple(weights[name].shape), sizes[name], kept[name]) for name in weights}


def _kept(units: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: int(unit.count_nonzero()) for name, unit in units.items()}


def _counts(
    layers: Mapping[str, Layer],
    lower: Mapping[str, int | None],
    allocation: Allocation,
    density: float | None,
    rate: float | None,
    rates: Mapping[str, float] | None,
) -> dict[str, int]:
    """Returns how many units each layer keeps, for every allocation but `global`."""
    if allocation == "layerwise":
        wanted = layerwise_counts(layers, rate, rates)
        total, shares = sum(wanted.values()), {name: Fraction(count) for name, count in wanted.items()}
    else:
        total = keep_total(layers, density, rate)
        shares = erk_weights(layers) if allocation == "erk" else uniform_weights(layers)
    check_floors(lower, total)
    limits = {name: own or 0 for name, own in lower.items()}
    return share_out(shares, limits, {name: layer.kept for name, layer in layers.items()}, total)


def _keep_counts(
    scores: Scores,
    survivors: Mapping[str, Tensor] | None,
    layers: Mapping[str, Layer],
    counts: Mapping[str, int],
) -> dict[str, Tensor]:
    """Returns the units with the highest scores of each layer in `counts`."""
    units: dict[str, Tensor] = {}
    for name, count in counts.items():
        units |= _drop_lowest([name], scores, survivors, layers[name].kept - count)
    return units


def _keep_globally(
    scores: Scores,
    survivors: Mapping[str, Tensor] | None,
    layers: Mapping[str, Layer],
    lower: Mapping[str, int | None],
    keep: int,
) -> dict[str, Tensor]:
    """Returns the `keep` units with the highest scores, where layers below their floor keep just that.

    A layer at its floor takes from the others, which may bring one of those below its own: at most one pass a
    layer.
    """
    held: dict[str, int] = {}
    while True:
        free = [name for name in layers if name not in held]
        drop = sum(layers[name].kept for name in free) - (keep - sum(held.values()))
        units = _drop_lowest(free, scores, survivors, drop)
        short = {name: lower[name] or 0 for name, kept in _kept(units).items() if kept < (lower[name] or 0)}
        if not short:
            break
        held |= short
    units |= _keep_counts(scores, survivors, layers, held)
    return {name: units[name] for name in layers}


def _drop_lowest(
    names: list[str], scores: Scores, survivors: Mapping[str, Tensor] | None, drop: int
) -> dict[str, Tensor]:
    """Returns the named layers' survivors without the `drop` lowest scores among them."""
    part = Scores({name: scores.tensors[name] for name in names}, scores.absolute)
    return apply_threshold(part, survivors, find_threshold(part, survivors, drop))
