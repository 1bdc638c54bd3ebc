"""One pruning in many steps, with new scores after each: what criteria that depend on the masks need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from sparseflow.masks.criteria import Scores
from sparseflow.masks.masks import Masks
from sparseflow.masks.patterns import Pattern
from sparseflow.training.round import masked


class Select(Protocol):
    """`prune_tensors` with all arguments but these."""

    def __call__(
        self,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        *,
        density: float | None = None,
        rate: float | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> Masks: ...


def prune_repeatedly(
    select: Select,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    *,
    iterations: int,
    pattern: Pattern,
    density: float | None,
    rate: float | None,
) -> Masks:
    """The masks after `iterations` prunings: from density d_0 to d, after the k-th d_0 (d / d_0)^(k / iterations).

    Each scores the weights times the masks so far. The counts at the end are those of one pruning.
    """
    units = pattern.units(masks)
    size = sum(unit.numel() for unit in units.values())
    kept = sum(int(unit.count_nonzero()) for unit in units.values())
    if density is None:
        assert rate is not None
        density = (kept - round(rate * kept)) / size
    present = kept / size
    if density >= present:
        iterations = 1
    # A pattern such as 2:4 lets no mask be denser than this.
    most = _most(pattern, masks, units) / size
    for number in range(1, iterations):
        towards = min(most, present * (density / present) ** (number / iterations))
        masks = select(masked(weights, masks), masks, density=towards)
    return select(masked(weights, masks), masks, density=density)


def _most(pattern: Pattern, masks: Mapping[str, Tensor], units: Mapping[str, Tensor]) -> int:
    even = pattern.unit_scores(Scores({name: mask.float() for name, mask in masks.items()}, False), masks)
    allowed = pattern.allowed(even, units)
    return sum(int(unit.count_nonzero()) for unit in (units if allowed is None else allowed).values())
