"""Patterns on weights that are stored (in, out), as transformers' Conv1D has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sparseflow.hardware.survey import survey
from sparseflow.masks.criteria import Scores
from sparseflow.masks.patterns import Pattern, Unstructured


@dataclass(frozen=True)
class Turned:
    """A pattern that sees some parameters transposed, as (out, in)."""

    pattern: Pattern
    transposed: frozenset[str]

    def unit_scores(self, scores: Scores, masks: Mapping[str, Tensor] | None) -> Scores:
        """As the pattern has it."""
        seen = None if masks is None else self._turned(masks)
        return self.pattern.unit_scores(Scores(self._turned(scores.tensors), scores.absolute), seen)

    def units(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As the pattern has it."""
        return self.pattern.units(self._turned(masks))

    def allowed(self, scores: Scores, units: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        """As the pattern has it."""
        return self.pattern.allowed(scores, units)

    def elements(self, units: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """As the pattern has it, turned back."""
        seen = {name: shape[::-1] if name in self.transposed else shape for name, shape in shapes.items()}
        return self._turned(self.pattern.elements(units, seen))

    def _turned(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: tensor.t().contiguous() if name in self.transposed else tensor for name, tensor in tensors.items()
        }


def turned(pattern: Pattern, model: nn.Module) -> Pattern:
    """The pattern for this model: what its layers store (in, out) is shown to it as (out, in)."""
    transposed = frozenset(name for name, site in survey(model).sites.items() if site.transposed)
    # NM is one of those that inherit from Unstructured, and has sides.
    return pattern if type(pattern) is Unstructured or not transposed else Turned(pattern, transposed)
