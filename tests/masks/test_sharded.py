from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from score_cases import COUNT, FILLS, by_sort, split
from slicings import SLICINGS, at, dealt
from thread_ranks import ThreadRanks, in_threads
from torch import Tensor

from sparseflow.masks import Masks, Scores, Slice, assemble, assemble_bits, cut, cut_evenly, prune_slices, prune_tensors
from sparseflow.ranks import ALONE, RanksDifferError

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# In the order of `shapes`, which is that of ties.
TINY = {"b": torch.tensor([1.0, -2.0, 3.0, 4.0]), "a": torch.tensor([[2.0, 2.0], [9.0, -2.0]])}


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def prune_dealt(world: int, weights: Mapping[str, Tensor], slicing: str = "dealt", **how: Any) -> Masks:
    """The whole masks from pruning over so many ranks, the same on each of them."""

    def work(ranks: ThreadRanks) -> Masks:
        slices = SLICINGS[slicing](weights, ranks)
        masks = how.get("masks")
        given = {**how, "masks": None if masks is None else cut(masks, slices)}
        return assemble(prune_slices(slices, shapes_of(weights), ranks=ranks, **given), shapes_of(weights), ranks)

    found = in_threads(world, work)
    assert all(masks == found[0] for masks in found)
    return found[0]


def flat(masks: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([mask.reshape(-1) for mask in masks.values()])


def test_ties_go_by_parameter_and_index_wherever_they_lie() -> None:
    def work(ranks: ThreadRanks) -> list[Slice]:
        # Rank 1 holds what comes first.
        slices = at([2, 5, 7], lambda part: (part + 1) % 2)(TINY, ranks)
        return prune_slices(slices, shapes_of(TINY), density=0.5, ranks=ranks)

    first, second = in_threads(2, work)
    assert [(part.name, part.start, part.values.tolist()) for part in second] == [
        ("b", 0, [False, False]),
        ("a", 1, [False, True]),
    ]
    assert [(part.name, part.start, part.values.tolist()) for part in first] == [
        ("b", 2, [True, True]),
        ("a", 0, [False]),
        ("a", 3, [True]),
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("slicing", SLICINGS)
def test_equals_a_stable_sort_on_three_ranks(slicing: str, fill: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = split(FILLS[fill](generator, dtype))
    scores = Scores(weights, absolute=True)
    alive = torch.rand(COUNT, generator=generator) < 0.6
    left = int(alive.sum())
    for drop in (0, 1, left // 3, left - 1):
        masks = prune_dealt(3, weights, slicing, masks=split(alive), rate=drop / left, floor=0)
        assert torch.equal(flat(masks), by_sort(scores, alive, drop))
    none = prune_dealt(3, weights, slicing, density=1e-9, floor=0)
    assert none.nnz == 0


sizes = st.lists(st.integers(0, 30), min_size=1, max_size=4).filter(any)


@settings(deadline=None, max_examples=60)
@given(
    sizes,
    st.sampled_from(["global", "layerwise", "uniform", "erk"]),
    st.integers(1, 4),
    st.floats(0.0, 0.9),
    st.sampled_from([0, 0, 2]),
    st.data(),
)
def test_equals_one_process_however_it_is_cut(
    sizes: list[int], allocation: Any, world: int, rate: float, floor: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    dtypes = data.draw(st.lists(st.sampled_from(DTYPES), min_size=len(sizes), max_size=len(sizes)))
    weights = {
        str(number): (torch.randn(size, generator=generator) * 4).round().to(dtype)
        for number, (size, dtype) in enumerate(zip(sizes, dtypes, strict=True))
    }
    before = {name: torch.rand(weight.shape, generator=generator) < 0.7 for name, weight in weights.items()}
    masks = data.draw(st.sampled_from([None, before]))
    bounds = sorted(data.draw(st.sets(st.integers(0, sum(sizes)), max_size=8)))
    owners = data.draw(st.lists(st.integers(0, world - 1), min_size=len(bounds) + 1, max_size=len(bounds) + 1))
    how: dict[str, Any] = {"rate": rate, "allocation": allocation, "floor": floor}
    try:
        expected = prune_tensors(weights, masks, **how)
    except ValueError as error:
        expected = str(error)

    def work(ranks: ThreadRanks) -> Masks | str:
        slices = at(bounds, owners.__getitem__)(weights, ranks)
        previous = None if masks is None else cut(masks, slices)
        try:
            kept = prune_slices(slices, shapes_of(weights), masks=previous, ranks=ranks, **how)
        except ValueError as error:
            return str(error)
        return assemble(kept, shapes_of(weights), ranks)

    assert in_threads(world, work) == [expected] * world


def test_one_process_needs_no_ranks() -> None:
    weights = {"a": torch.randn(40, 3), "b": torch.randn(50)}
    kept = prune_slices(cut_evenly(weights), shapes_of(weights), density=0.3, allocation="erk")
    assert assemble(kept, shapes_of(weights)) == prune_tensors(weights, density=0.3, allocation="erk")
    # A second pruning starts from the slices of the first.
    again = prune_slices(cut_evenly(weights), shapes_of(weights), masks=kept, rate=0.5)
    whole = prune_tensors(weights, assemble(kept, shapes_of(weights)), rate=0.5)
    assert assemble(again, shapes_of(weights), ALONE) == whole


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_every_rank_hears_of_weights_that_are_not_finite(bad: float, allocation: Any) -> None:
    weights = {"good": torch.ones(9), "bad": torch.ones(9), "worse": torch.ones(9)}
    weights["bad"][5] = bad
    weights["worse"][[0, 8]] = bad

    def work(ranks: ThreadRanks) -> str:
        slices = cut_evenly(weights, ranks)
        with pytest.raises(ValueError) as caught:
            prune_slices(slices, shapes_of(weights), density=0.5, allocation=allocation, ranks=ranks)
        return str(caught.value)

    assert in_threads(3, work) == ["expected finite scores, got inf or nan for 1 of 'bad', 2 of 'worse'"] * 3


def test_a_pruned_weight_may_be_nan() -> None:
    weights = {"a": torch.tensor([float("nan"), 2.0, 1.0])}
    masks = {"a": torch.tensor([False, True, True])}
    assert prune_dealt(2, weights, masks=masks, rate=0.5)["a"].tolist() == [False, True, False]


def traffic(world: int, weights: Mapping[str, Tensor], **how: Any) -> list[int]:
    def work(ranks: ThreadRanks) -> int:
        slices = cut_evenly(weights, ranks)
        masks = cut({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}, slices)
        prune_slices(slices, shapes_of(weights), masks=masks, ranks=ranks, **how)
        return ranks.traffic

    return in_threads(world, work)


@pytest.mark.parametrize("fill", [torch.randn, torch.zeros])
def test_traffic_does_not_grow_with_the_number_of_weights(fill: Any) -> None:
    names = [f"model.layers.{number}.mlp.down_proj.weight" for number in range(12)]
    small, large = ({name: fill(size) for name in names} for size in (1_000, 100_000))
    for world in (1, 4):
        spent = [max(traffic(world, weights, density=0.2, floor=0)) for weights in (small, large)]
        assert all(bytes_ <= 2**20 + 64 * len(names) * world for bytes_ in spent)
        # Longer numbers in the layout: two digits each.
        assert abs(spent[1] - spent[0]) <= 8 * len(names)


def test_traffic_of_other_allocations_is_as_stated() -> None:
    names = [str(number) for number in range(12)]
    spent = traffic(4, {name: torch.randn(1000) for name in names}, density=0.2, allocation="erk")
    assert max(spent) <= 7 * 1024 * len(names) + 64 * len(names) * 4


def test_assembled_bits_cost_a_bit_a_weight() -> None:
    masks = {"a": torch.rand(7, 100) < 0.5, "b": torch.rand(64) < 0.5, "none": torch.ones(0, 3, dtype=torch.bool)}

    def work(ranks: ThreadRanks) -> tuple[Masks, int, dict[str, Tensor]]:
        slices = dealt(masks, ranks)
        bits = dict(assemble_bits(slices, shapes_of(masks), ranks))
        return assemble(slices, shapes_of(masks), ranks), ranks.traffic // 2, bits

    for whole, spent, bits in in_threads(3, work):
        assert whole == masks
        assert [packed.numel() for packed in bits.values()] == [88, 8, 0]
        assert spent <= 96 + 40 * (764 // 37 + 4)


@pytest.mark.parametrize(
    ("slices", "how", "error", "message"),
    [
        ([Slice("x", 0, torch.ones(4))], {}, ValueError, "slice: no parameter 'x'; available: a"),
        ([Slice("a", 0, torch.ones(2, 2))], {}, ValueError, r"expected a flat tensor, got shape \(2, 2\)"),
        ([Slice("a", 1, torch.ones(4))], {}, ValueError, "a part of its 4 weights, got 1 to 5; leave the shard's"),
        ([Slice("a", 0, torch.ones(3))], {}, ValueError, "all 4 weights over all ranks, none holds weight 3"),
        ([Slice("a", 0, torch.ones(1)), Slice("a", 2, torch.ones(2))], {}, ValueError, "none holds weight 1"),
        ([Slice("a", 0, torch.ones(4)), Slice("a", 2, torch.ones(2))], {}, ValueError, "2 to 4 are in more than one"),
        ([Slice("a", 0, torch.arange(4))], {}, TypeError, "score of 'a': expected bfloat16, .* got torch.int64"),
        ([Slice("a", 0, torch.ones(4))], {"rate": 2.0}, ValueError, "rate: expected the fraction"),
        ([Slice("a", 0, torch.ones(4))], {"criterion": "random"}, ValueError, "no criterion for slices 'random'"),
        ([Slice("a", 0, torch.ones(4))], {"masks": []}, ValueError, "none for 'a' from 0 to 4; cut whole masks"),
        (
            [Slice("a", 0, torch.ones(4))],
            {"masks": [Slice("a", 0, torch.ones(4))]},
            TypeError,
            "expected dtype torch.bool",
        ),
    ],
)
def test_what_one_rank_does_wrong_all_ranks_raise(
    slices: list[Slice], how: dict[str, Any], error: type[Exception], message: str
) -> None:
    def work(ranks: ThreadRanks) -> None:
        own = slices if ranks.rank == 1 else []
        given = {"rate": 0.5, **({"masks": []} if "masks" in how else {}), **(how if ranks.rank == 1 else {})}
        with pytest.raises(error, match=message):
            prune_slices(own, {"a": (4,)}, ranks=ranks, **given)

    in_threads(2, work)


def test_ranks_that_ask_for_different_things_are_refused() -> None:
    def work(ranks: ThreadRanks) -> None:
        with pytest.raises(RanksDifferError, match="the arguments of prune_slices: rank 1 differs"):
            prune_slices(cut_evenly(TINY, ranks), shapes_of(TINY), rate=0.5 + ranks.rank / 10, ranks=ranks)

    in_threads(2, work)


def test_only_masks_are_assembled() -> None:
    with pytest.raises(TypeError, match=r"mask of 'a': expected dtype torch\.bool, got torch\.float32"):
        assemble([Slice("a", 0, torch.ones(4))], {"a": (4,)})


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each rank of real launches of 1 to 4 processes found."""
    found = run_script(Path(__file__).with_name("gloo_cases.py"), tmp_path_factory.mktemp("ranks"))
    return {int(world): ranks for world, ranks in found.items()}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_processes_equal_the_stable_sort(launched: dict[int, list[dict[str, Any]]], world: int) -> None:
    assert len(launched[world]) == world
    assert [found["wrong"] for found in launched[world]] == [[]] * world
    assert [found["cases"] for found in launched[world]] == [49] * world


def test_processes_agree_whatever_their_number(launched: dict[int, list[dict[str, Any]]]) -> None:
    weights = split(FILLS["ties"](torch.Generator().manual_seed(0), torch.float32))
    digest = prune_tensors(weights, density=0.3, allocation="erk", floor=1).digest
    everybody = [found for ranks in launched.values() for found in ranks]
    assert {found["mask"] for found in everybody} == {digest}
    assert {found["error"] for found in everybody} == {"expected finite scores, got inf or nan for 1 of 'bad'"}


@pytest.mark.parametrize("world", [2, 3, 4])
def test_traffic_of_processes_is_bounded(launched: dict[int, list[dict[str, Any]]], world: int) -> None:
    for found in launched[world]:
        small, large = found["traffic"]
        assert 768 * 1024 < small <= large <= 2**20 + 64 * 12 * world
        assert large - small <= 8 * 12
