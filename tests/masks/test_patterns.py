from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow.masks import Scores, Unstructured, prune_tensors


@dataclass(frozen=True)
class Rows:
    """Whole rows, by the sum of |score| of what they still hold."""

    def unit_scores(self, scores: Scores, masks: Mapping[str, Tensor] | None) -> Scores:
        kept = masks or {name: torch.ones(()) for name in scores.tensors}
        sums = {name: (tensor.abs() * kept[name]).sum(1) for name, tensor in scores.tensors.items()}
        return Scores(sums, absolute=False)

    def units(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: mask.any(1) for name, mask in masks.items()}

    def allowed(self, scores: Scores, units: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        return units

    def elements(self, units: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        return {name: unit[:, None].expand(*shapes[name]) for name, unit in units.items()}


def test_unstructured_is_every_weight_for_itself() -> None:
    assert Unstructured() == Unstructured()
    weights = {"a": torch.tensor([3.0, 1.0, 2.0])}
    assert prune_tensors(weights, density=2 / 3, pattern=Unstructured()) == prune_tensors(weights, density=2 / 3)


def test_a_unit_that_stays_brings_nothing_back() -> None:
    masks = {"a": torch.tensor([[True, False], [True, True]])}
    assert prune_tensors({"a": torch.ones(2, 2)}, masks, rate=0.0, pattern=Rows()) == masks


def test_a_pattern_prunes_its_units_as_one() -> None:
    weights = {"a": torch.tensor([[1.0, 2.0], [-9.0, 0.0], [4.0, 4.0], [0.5, 0.5]])}
    masks = prune_tensors(weights, density=0.5, pattern=Rows())
    assert masks["a"].tolist() == [[False] * 2, [True] * 2, [True] * 2, [False] * 2]
    assert prune_tensors(weights, masks, rate=0.5, pattern=Rows())["a"].any(1).tolist() == [
        False,
        True,
        False,
        False,
    ]
