"""Selection: joins criterion, pattern, allocation and floors. Tensors in, masks out."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sparseflow.masks import criteria
from sparseflow.masks.allocation import Allocation, Layer
from sparseflow.masks.criteria import Criterion, Scores
from sparseflow.masks.floors import Floor
from sparseflow.masks.importance import Importance, rescale
from sparseflow.masks.keep import Amounts, keep_units
from sparseflow.masks.masks import Masks
from sparseflow.masks.patterns import UNSTRUCTURED, Pattern
from sparseflow.masks.pieces import Pieces
from sparseflow.ranks import ALONE, Ranks


def prune_tensors(
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    *,
    density: float | None = None,
    rate: float | None = None,
    criterion: str | Criterion = "magnitude",
    importance: Importance | None = None,
    pattern: Pattern = UNSTRUCTURED,
    allocation: Allocation = "global",
    rates: Mapping[str, float] | None = None,
    floor: Floor | None = None,
    seed: int = 0,
    ranks: Ranks = ALONE,
) -> Masks:
    """Returns the masks of the weights to keep, a subset of `masks`: what is pruned never returns.

    criterion: what a weight is worth; importance: how its scores are rescaled within each layer, see `rescale`;
    pattern: which weights are kept or pruned together. weights: all prunable weights by parameter name. masks: what is
    kept so far, of the same names; None: all.
    density: the fraction of all weights to keep; rate: the fraction of the kept ones to prune. Exactly one of
    them, or, for `layerwise`, `rates` (name glob → rate, first match wins) with `rate` for the layers that no
    glob matches. Counts are exact: round half even of density · total or of rate · kept; per layer for
    `layerwise`. floor: the fewest weights a layer keeps, see `Floor`; the others then give up more. ranks: where each
    has the same weights; the scores of a criterion of one's own, which may come from each rank's own data, are averaged
    over them (4 bytes a weight on the wire), so that all choose the same.

    Equal scores are pruned lowest index first, in the order of `weights`. Raises ValueError for a number out
    of range, a density above the current one, scores that are not finite, floors that exceed the target, and
    layers that would keep nothing without a floor. Memory above the scores: the masks and one chunk.
    """
    amounts = Amounts(density, rate, allocation, rates, floor)
    score = criteria.get(criterion)
    masks = _checked_masks(weights, masks)
    with torch.no_grad():
        found = _checked_scores(score(weights, seed), weights)
        if callable(criterion):
            found = criteria.averaged(found, ranks)
        if importance is not None:
            found = rescale(found, masks, importance)
        scores = pattern.unit_scores(found, masks)
        survivors = None if masks is None else pattern.units(masks)
        allowed = pattern.allowed(scores, survivors)
        layers = _layers(weights, scores, survivors, allowed)
        pieces = Pieces.whole(scores, allowed, f" from criterion {str(criterion)!r}")
        units = keep_units(pieces, layers, amounts, str(criterion))
        chosen = {name: units[place] for place, name in enumerate(weights)}
        kept = pattern.elements(chosen, {name: weight.shape for name, weight in weights.items()})
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


def _layers(
    weights: Mapping[str, Tensor],
    scores: Scores,
    survivors: Mapping[str, Tensor] | None,
    allowed: Mapping[str, Tensor] | None,
) -> dict[str, Layer]:
    sizes = {name: tensor.numel() for name, tensor in scores.tensors.items()}
    kept, most = (
        sizes if units is None else {name: int(unit.count_nonzero()) for name, unit in units.items()}
        for units in (survivors, allowed)
    )
    return {name: Layer(tuple(weights[name].shape), sizes[name], kept[name], most[name]) for name in weights}
