from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threaded import together
from torch import Tensor

from sparseflow.masks import Allocation, Masks, Scores, criteria, prune_tensors, shuffle_masks
from sparseflow.ranks import Ranks

LENET = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}
ALLOCATIONS: tuple[Allocation, ...] = ("global", "layerwise", "uniform", "erk")


def draw(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_published_schedule_of_lenet() -> None:
    """Frankle & Carbin, 2019 (arXiv:1803.03635): 20 % a round, 10 % in the last layer."""
    weights, masks = draw(LENET), None
    percent, kept = {}, {}
    for round_ in range(1, 25):
        masks = prune_tensors(weights, masks, rate=0.2, rates={"fc3.weight": 0.1}, allocation="layerwise")
        percent[round_], kept[round_] = round(100 * masks.density, 3), list(masks.kept.values())
    assert kept[7] == [49_325, 6_291, 478]
    expected = {1: 80.038, 3: 51.281, 7: 21.072, 9: 13.517, 15: 3.583, 19: 1.487, 24: 0.500}
    assert {round_: percent[round_] for round_ in expected} == expected


@pytest.mark.parametrize(("density", "nnz"), [(0.1, 26_620), (0.05, 13_310), (0.02, 5_324), (0.01, 2_662)])
@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_total_is_exact(allocation: Allocation, density: float, nnz: int) -> None:
    assert prune_tensors(draw(LENET), density=density, allocation=allocation).nnz == nnz


def test_global_keeps_the_largest_anywhere() -> None:
    weights = {"a": torch.tensor([[1.0, -5.0], [2.0, 0.0]]), "b": torch.tensor([-4.0, 3.0])}
    masks = prune_tensors(weights, density=0.5)
    assert masks["a"].tolist() == [[False, True], [False, False]]
    assert masks["b"].tolist() == [True, True]


def test_layers_are_pruned_on_their_own() -> None:
    weights = {"a": torch.tensor([1.0, -2.0, 3.0, 4.0]), "b": torch.tensor([10.0, -20.0, 30.0, 40.0])}
    for how in ({"rate": 0.5, "allocation": "layerwise"}, {"density": 0.5, "allocation": "uniform"}):
        masks = prune_tensors(weights, **how)  # type: ignore[arg-type]
        assert masks["a"].tolist() == masks["b"].tolist() == [False, False, True, True]


def test_uniform_with_a_rate_evens_out_what_is_left() -> None:
    weights = {"a": torch.arange(1.0, 11.0), "b": torch.arange(1.0, 11.0)}
    masks = {"a": torch.arange(10) >= 8, "b": torch.arange(10) >= 0}
    assert prune_tensors(weights, masks, rate=0.5, allocation="uniform").kept == {"a": 2, "b": 4}


def test_equal_weights_go_lowest_index_first() -> None:
    masks = prune_tensors({"b": torch.ones(3), "a": torch.ones(3)}, density=2 / 3)
    assert masks["b"].tolist() == [False, False, True]
    assert masks["a"].tolist() == [True, True, True]


def test_a_pruned_weight_never_returns_however_large_it_is() -> None:
    weights = {"a": torch.tensor([1e9, 1.0, 2.0, 3.0])}
    masks = {"a": torch.tensor([False, True, True, True])}
    assert prune_tensors(weights, masks, density=0.5)["a"].tolist() == [False, False, True, True]
    assert prune_tensors(weights, masks, rate=1 / 3)["a"].tolist() == [False, False, True, True]


def test_zeros_that_survive_are_not_pruned_weights() -> None:
    weights = {"a": torch.zeros(4)}
    masks = {"a": torch.tensor([False, True, True, True])}
    assert prune_tensors(weights, masks, density=0.5)["a"].tolist() == [False, False, True, True]


def test_own_criterion_may_be_signed_and_ranks_as_given() -> None:
    def signed(weights: Mapping[str, Tensor], seed: int) -> Scores:
        return Scores(weights, absolute=False)

    masks = prune_tensors({"a": torch.tensor([-3.0, 1.0, 2.0])}, density=2 / 3, criterion=signed)
    assert masks["a"].tolist() == [False, True, True]


def test_random_criterion_follows_the_seed() -> None:
    weights = draw({"a": (50, 50)})
    first = prune_tensors(weights, density=0.5, criterion="random", seed=1)
    assert first == prune_tensors(draw({"a": (50, 50)}, 9), density=0.5, criterion="random", seed=1)
    assert first != prune_tensors(weights, density=0.5, criterion="random", seed=2)


def test_floor_takes_from_the_other_layers_until_all_have_theirs() -> None:
    # Holding a at 2 leaves 4 for b and c; that would leave b with 1, so b is held too and c keeps 2.
    weights = {
        "a": torch.tensor([1.0, 2.0, 3.0]),
        "b": torch.tensor([4.0, 5.0, 9.0]),
        "c": torch.tensor([6.0, 7.0, 8.0, 10.0]),
    }
    assert prune_tensors(weights, density=0.6, floor=0).kept == {"a": 0, "b": 2, "c": 4}
    masks = prune_tensors(weights, density=0.6, floor=2)
    assert masks.kept == {"a": 2, "b": 2, "c": 2}
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "a": [False, True, True],
        "b": [False, True, True],
        "c": [False, False, True, True],
    }


def test_floor_cascade_needs_a_third_pass() -> None:
    weights = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([2.0, 9.0]), "c": torch.arange(3.0, 9.0)}
    # Five kept: c, c, c, c, b. Holding a at 2 leaves c, b; holding b at 2 leaves c one.
    assert prune_tensors(weights, density=0.5, floor={"a": 2, "b": 2, "c": 1}).kept == {
        "a": 2,
        "b": 2,
        "c": 1,
    }


@pytest.mark.parametrize(
    ("floor", "kept_of_small"),
    [(3, 3), (0.25, 3), ({"sm*": 5}, 5), ({"small": 0.5, "*": 1}, 5), (100, 10)],
)
@pytest.mark.parametrize("allocation", ["global", "layerwise"])
def test_floor_is_a_count_a_fraction_or_by_name(allocation: Allocation, floor: Any, kept_of_small: int) -> None:
    weights = {"small": torch.full((10,), 0.001), "large": torch.arange(1.0, 1001.0)}
    rates = {"small": 0.99} if allocation == "layerwise" else None
    masks = prune_tensors(weights, rate=0.5, allocation=allocation, rates=rates, floor=floor)
    assert masks.kept["small"] == kept_of_small
    assert masks.nnz == (505 if allocation == "global" else 500)


def test_floors_of_many_layers_are_counted_not_listed() -> None:
    weights = draw({f"layer{number}": (10,) for number in range(7)})
    with pytest.raises(ValueError, match=r"\(layer0 6, layer1 6, layer2 6, layer3 6 and 3 more\), but only 35 are"):
        prune_tensors(weights, density=0.5, floor=6)


def test_floors_above_the_target_are_refused_with_numbers() -> None:
    for allocation in ("global", "uniform", "erk"):
        with pytest.raises(ValueError, match=r"floors add up to 12 weights \(a 6, b 6\), but only 6 are to be kept"):
            prune_tensors(draw({"a": (10,), "b": (20,)}), density=0.2, floor=6, allocation=allocation)


@pytest.mark.parametrize("floor", [-1, 1.0, 0.0, 1.5, True, "all", {"a": -1}])
def test_floors_out_of_range_are_refused(floor: Any) -> None:
    with pytest.raises(ValueError, match=r"floor of 'a': expected an int >= 0 \(weights\) or a float in"):
        prune_tensors(draw({"a": (10,)}), density=0.5, floor=floor)


def test_floor_for_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="floor: no parameter matching 'x'; available: a"):
        prune_tensors(draw({"a": (10,)}), density=0.5, floor={"x": 1})


def test_a_layer_that_would_be_empty_is_refused_loudly() -> None:
    weights = {"first": torch.full((5,), 0.1), "second": torch.full((20,), 9.0)}
    with pytest.raises(ValueError, match=r"'magnitude' would leave no weight in first, .* pass floor=1"):
        prune_tensors(weights, density=0.5)
    with pytest.raises(ValueError, match="would leave no weight in first, second"):
        prune_tensors(weights, density=0.001)
    empty = prune_tensors(weights, density=0.5, floor={"first": 0})
    assert empty.kept == {"first": 0, "second": 12}
    assert prune_tensors(weights, empty, rate=0.5).kept == {"first": 0, "second": 6}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of density and rate; got density=None, rate=None"),
        ({"density": 0.5, "rate": 0.5}, "exactly one of density and rate; got density=0.5, rate=0.5"),
        *(
            ({"density": density}, rf"density: expected the fraction to keep, in \(0, 1\], got {density}")
            for density in (0, -1, 1.5, float("nan"))
        ),
        *(({"rate": rate}, rf"rate: expected .* in \[0, 1\), got {rate}") for rate in (1.0, -0.1, 2, float("nan"))),
        ({"density": 0.5, "allocation": "erg"}, "no allocation 'erg'; .* did you mean 'erk'"),
        ({"density": 0.5, "rates": {"*": 0.1}}, "rates needs allocation='layerwise', got 'global'"),
        ({"allocation": "layerwise"}, "takes rate, rates or both, and no density"),
        ({"allocation": "layerwise", "density": 0.5}, "pass allocation='uniform'"),
        ({"density": 0.5, "criterion": "snap"}, "no criterion 'snap'; available: magnitude, random"),
        ({"density": 0.5, "masks": {"b": torch.ones(10) > 0}}, "no parameter 'b'; available: a"),
        ({"density": 0.5, "masks": {}}, "expected one for every weight, got none for a"),
        ({"density": 0.5, "masks": {"a": torch.arange(10) < 4}}, r"only 4 are left \(density 0.4\)"),
    ],
)
def test_bad_arguments_say_what_to_do(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_tensors({"a": torch.arange(10.0)}, **arguments)


def test_no_weights_and_wrong_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one prunable parameter"):
        prune_tensors({}, density=0.5)
    with pytest.raises(ValueError, match=r"expected a score of shape \(3,\) for 'a', got \(2,\)"):
        prune_tensors({"a": torch.ones(3)}, density=0.5, criterion=lambda w, s: Scores({"a": torch.ones(2)}, True))
    with pytest.raises(ValueError, match="1 of 'a'"):
        prune_tensors({"a": torch.tensor([1.0, float("nan")])}, density=0.5)


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(
    sizes,
    st.sampled_from(ALLOCATIONS),
    st.sampled_from(["magnitude", "random"]),
    st.floats(0.0, 0.7),
    st.integers(0, 6),
    st.integers(0, 99),
)
def test_rounds_nest_with_exact_counts_above_the_floor(
    sizes: list[int], allocation: Allocation, criterion: str, rate: float, floor: int, seed: int
) -> None:
    weights = draw({str(i): (size,) for i, size in enumerate(sizes)}, seed)
    masks = Masks.ones({name: weight.shape for name, weight in weights.items()})
    for _ in range(3):
        if allocation == "layerwise":
            expected = sum(kept - round(rate * kept) for kept in masks.kept.values())
        else:
            expected = masks.nnz - round(rate * masks.nnz)
        if sum(min(floor, kept) for kept in masks.kept.values()) > expected:
            break
        pruned = prune_tensors(
            weights, masks, rate=rate, allocation=allocation, criterion=criterion, floor=floor, seed=seed
        )
        assert pruned.nnz == expected
        assert pruned.issubset(masks)
        assert all(pruned.kept[name] >= min(floor, kept) for name, kept in masks.kept.items())
        masks = pruned


@settings(deadline=None, max_examples=20)
@given(sizes, st.sampled_from(ALLOCATIONS), st.integers(0, 99))
def test_rate_zero_and_the_same_density_change_nothing(sizes: list[int], allocation: Allocation, seed: int) -> None:
    weights = draw({str(i): (size,) for i, size in enumerate(sizes)}, seed)
    masks = prune_tensors(weights, rate=0.3, allocation=allocation, floor=0)
    assert prune_tensors(weights, masks, rate=0.0, allocation=allocation, floor=0) == masks
    if allocation != "layerwise":
        assert prune_tensors(weights, masks, density=masks.density, allocation=allocation, floor=0) == masks


def test_shuffle_keeps_the_counts_and_moves_the_places() -> None:
    masks = prune_tensors(draw(LENET), density=0.1, allocation="erk")
    shuffled = shuffle_masks(masks, seed=1)
    assert shuffled.kept == masks.kept
    assert shuffled != masks
    assert shuffled == shuffle_masks(masks, seed=1)
    assert shuffled != shuffle_masks(masks, seed=2)
    alone = shuffle_masks({"fc2.weight": masks["fc2.weight"]}, seed=1)
    assert torch.equal(alone["fc2.weight"], shuffled["fc2.weight"])
    assert shuffled["fc1.weight"].shape == (300, 784)


def test_scores_of_ones_own_are_averaged_over_ranks() -> None:
    weights = {"a": torch.ones(2, 3), "b": torch.ones(4)}
    each = [
        {"a": torch.tensor([[9.0, 0, 1], [0, 5, 0]]), "b": torch.tensor([0.0, 3, 0, 0])},
        {"a": torch.tensor([[-9.0, 4, 1], [0, 5, 0]]), "b": torch.tensor([0.0, 3, 0, 8])},
    ]

    def prune(ranks: Ranks) -> list[bool]:
        masks = prune_tensors(
            weights, density=0.4, criterion=lambda weights, seed: Scores(each[ranks.rank], absolute=True), ranks=ranks
        )
        return [kept for name in weights for kept in masks[name].flatten().tolist()]

    # Means: 0 2 1, 0 5 0 and 0 3 0 4.
    expected = [place in (1, 4, 7, 9) for place in range(10)]
    assert together(2, prune) == [expected, expected]


def test_averages_keep_the_range_of_float64() -> None:
    scores = Scores({"a": torch.tensor([1e-300, 1e300], dtype=torch.float64)}, absolute=True)
    (found, _) = together(2, lambda ranks: criteria.averaged(scores, ranks).tensors["a"].tolist())
    assert found == [1e-300, 1e300]
