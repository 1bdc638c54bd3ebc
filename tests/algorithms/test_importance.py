"""Layerwise rescaled importance: invariance under a layer's scale, order within it, and its edge cases."""

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparseflow.masks import Scores, prune_tensors, rescale
from sparseflow.masks.importance import Importance

ALL: list[Importance] = ["l1", "l2", "softmax", "minmax"]
EXACT = {"rtol": 0.0, "atol": 1e-15}


def layers(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(20, 30, generator=generator), "b": torch.randn(7, 11, generator=generator)}


def rescaled(weights: Mapping[str, Tensor], by: Importance, masks: Mapping[str, Tensor] | None = None) -> Scores:
    return rescale(Scores(weights, absolute=True), masks, by)


def test_the_four_formulas_on_the_unpruned() -> None:
    masks = {"a": torch.tensor([True, True, False, True])}
    weights = {"a": torch.tensor([1.0, -2.0, 100.0, 5.0])}
    found = {by: rescaled(weights, by, masks).tensors["a"] for by in ALL}
    exp = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).exp()
    expected = {
        "l1": [1 / 8, 2 / 8, 0, 5 / 8],
        "l2": [1 / 30, 4 / 30, 0, 25 / 30],
        "softmax": [*(exp / exp.sum())[:2], 0, (exp / exp.sum())[2]],
        "minmax": [0, 1 / 4, 0, 1],
    }
    for by, numbers in expected.items():
        torch.testing.assert_close(found[by], torch.tensor(numbers, dtype=torch.float64), **EXACT)  # type: ignore[index]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_only_softmax_and_magnitude_see_a_layers_scale(seed: int, factor: float) -> None:
    weights = {name: tensor.double() for name, tensor in layers(seed).items()}
    scaled = {**weights, "a": weights["a"] * factor}
    for by in ("l1", "l2", "minmax"):
        before, after = (rescaled(one, by).tensors["a"] for one in (weights, scaled))  # type: ignore[arg-type]
        torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-15)


def test_a_scaled_layer_changes_the_ticket_of_magnitude_and_softmax_alone() -> None:
    # As large as each other: softmax looks at sizes first.
    weights = {name: tensor[:, :7] for name, tensor in layers().items()}
    weights["a"] = weights["a"][:7]
    # A power of two changes no rounding.
    scaled = {**weights, "a": weights["a"] * 8}
    same: dict[str | None, bool] = {
        by: prune_tensors(weights, **options) == prune_tensors(scaled, **options)
        for by in (None, *ALL)
        for options in [{"density": 0.3, "floor": 1, "importance": by}]
    }
    assert same == {None: False, "l1": True, "l2": True, "softmax": False, "minmax": True}


@pytest.mark.parametrize("by", ALL)
def test_budgets_differ_and_the_order_within_a_layer_does_not(by: Importance) -> None:
    weights = layers()
    masks = prune_tensors(weights, density=0.3, importance=by)
    counts = masks.kept
    for name, weight in weights.items():
        alone = prune_tensors({name: weight}, density=counts[name] / weight.numel())
        assert torch.equal(alone[name], masks[name])
    assert counts != prune_tensors(weights, density=0.3).kept


@pytest.mark.parametrize("by", ALL)
def test_pruned_weights_do_not_count(by: Importance) -> None:
    weights = layers()
    masks = prune_tensors(weights, density=0.5)
    other = {name: torch.where(masks[name], weight, 1e6) for name, weight in weights.items()}
    found, expected = (rescaled(one, by, masks) for one in (other, weights))
    assert all(torch.equal(found.tensors[name], expected.tensors[name]) for name in weights)


def in_float32(weights: Mapping[str, Tensor]) -> Scores:
    """Softmax as one would first write it."""
    return Scores({n: w.abs().flatten().softmax(0).view(w.shape) for n, w in weights.items()}, absolute=False)


def test_small_weights_do_not_tie_under_softmax() -> None:
    weights = {"a": torch.arange(1.0, 1001.0).flip(0) * 1e-9, "b": torch.ones(10)}
    lowest = weights["a"].sort().indices[:300]

    def keeps_the_largest(scores: Scores) -> bool:
        masks = prune_tensors({"a": weights["a"]}, density=0.7, criterion=lambda _, seed: scores)
        return not bool(masks["a"][lowest].any())

    def only_a(scores: Scores) -> Scores:
        return Scores({"a": scores.tensors["a"]}, absolute=False)

    assert keeps_the_largest(only_a(rescaled(weights, "softmax")))
    # The trap: in float32 all are 1/|W|, and the first go.
    assert not keeps_the_largest(only_a(in_float32(weights)))


def test_softmax_neither_overflows_nor_goes_below_one_over_the_count_for_equal_weights() -> None:
    found = rescaled({"a": torch.full((5,), 1e30), "b": torch.tensor([0.0, 1e4])}, "softmax").tensors
    assert found["a"].tolist() == [0.2] * 5 and found["b"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("by", ALL)
def test_the_last_weight_of_a_layer_counts_as_its_greatest(by: Importance) -> None:
    masks = {"a": torch.tensor([False, True, False])}
    assert rescaled({"a": torch.tensor([3.0, 1e-20, 2.0])}, by, masks).tensors["a"].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("by", ["l1", "l2", "minmax"])
def test_a_layer_of_zeros_is_worth_nothing(by: Importance) -> None:
    assert rescaled({"a": torch.zeros(3)}, by).tensors["a"].tolist() == [0.0] * 3


def test_minmax_prunes_in_every_layer_each_round_unless_a_floor_holds() -> None:
    weights = {"a": torch.tensor([5.0, 6.0]), "b": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    masks = prune_tensors(weights, density=4 / 6, importance="minmax")
    assert masks.kept == {"a": 1, "b": 3}
    assert prune_tensors(weights, density=4 / 6, importance="minmax", floor={"a": 2}).kept == {"a": 2, "b": 2}


def test_signed_scores_keep_their_order() -> None:
    scores = Scores({"a": torch.tensor([-3.0, -1.0, 0.0, 2.0])}, absolute=False)
    for by in ALL:
        found = rescale(scores, None, by).tensors["a"]
        assert bool((found.diff() > 0).all()), by


def test_an_unknown_importance_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"no importance 'l3'; available: l1, l2, softmax, minmax"):
        prune_tensors(layers(), density=0.5, importance="l3")  # type: ignore[arg-type]


def test_scores_that_are_not_finite_are_reported_through_it() -> None:
    weights = {"a": torch.tensor([1.0, float("nan")])}
    with pytest.raises(ValueError, match="expected finite scores from criterion 'magnitude', got inf or nan for 1 of"):
        prune_tensors(weights, density=0.5, importance="l1")
