"""Patterns: which weights are pruned together. A pattern is one frozen dataclass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sparseflow.masks.criteria import Scores


class Pattern(Protocol):
    """Groups the weights of a parameter into units that are kept or pruned as one.

    Thresholds, allocations and floors count units; the unit tensors may have any shape.
    """

    def unit_scores(self, scores: Scores, masks: Mapping[str, Tensor] | None) -> Scores:
        """Returns one score a unit from one a weight. Weights that `masks` prunes must not add to a score."""
        ...

    def units(self, mask: Tensor) -> Tensor:
        """Returns the units, bool, that still hold a kept weight of `mask`."""
        ...

    def elements(self, units: Tensor, shape: Sequence[int]) -> Tensor:
        """Returns the mask of a parameter of `shape` that keeps the weights of the kept units."""
        ...


@dataclass(frozen=True)
class Unstructured:
    """Every weight for itself."""

    def unit_scores(self, scores: Scores, masks: Mapping[str, Tensor] | None) -> Scores:
        """Returns the scores as they are."""
        return scores

    def units(self, mask: Tensor) -> Tensor:
        """Returns the mask as it is."""
        return mask

    def elements(self, units: Tensor, shape: Sequence[int]) -> Tensor:
        """Returns the choice as it is."""
        return units


UNSTRUCTURED = Unstructured()
