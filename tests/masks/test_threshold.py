import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from score_cases import COUNT, FILLS, by_sort, split, ties
from torch import Tensor

from sparseflow.masks import Group, Pieces, Scores, apply_thresholds, find_thresholds, keys, threshold
from sparseflow_kernels import cpu_digits
from sparseflow_kernels.cpu_digits import count_digits

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def choose(scores: Scores, survivors: Mapping[str, Tensor] | None, drop: int) -> Tensor:
    pieces, groups = Pieces.whole(scores, survivors), [Group(list(scores.tensors), drop)]
    masks = apply_thresholds(pieces, groups, find_thresholds(pieces, groups))
    assert [mask.shape for mask in masks.values()] == [tensor.shape for tensor in scores.tensors.values()]
    assert all(mask.is_contiguous() for mask in masks.values())
    return torch.cat([mask.reshape(-1) for mask in masks.values()])


@pytest.fixture(params=["torch", "kernel"])
def counting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits are counted by torch, or by the kernel wherever it can."""
    monkeypatch.setattr(threshold, "_NATIVE", 0 if request.param == "kernel" else math.inf)


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fill", FILLS)
def test_equals_a_stable_sort(fill: str, dtype: torch.dtype, absolute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "CHUNK", 100)
    generator = torch.Generator().manual_seed(0)
    scores = Scores(split(FILLS[fill](generator, dtype)), absolute)
    every = torch.ones(COUNT, dtype=torch.bool)
    for drop in (0, 1, COUNT // 3, COUNT - 1, COUNT):
        assert torch.equal(choose(scores, None, drop), by_sort(scores, every, drop))
    alive = torch.rand(COUNT, generator=generator) < 0.6
    left = int(alive.sum())
    for drop in (0, 1, left // 3, left - 1, left):
        assert torch.equal(choose(scores, split(alive), drop), by_sort(scores, alive, drop))


def test_mixed_dtypes_are_compared_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = split(ties(generator, torch.float64))
    tensors = {name: t.to(DTYPES[i % 4]) for i, (name, t) in enumerate(tensors.items())}
    for absolute in (True, False):
        scores = Scores(tensors, absolute)
        chosen = choose(scores, None, 500)
        assert torch.equal(chosen, by_sort(scores, torch.ones(COUNT, dtype=torch.bool), 500))


def test_row_major_order_whatever_the_strides() -> None:
    chosen = choose(Scores({"a": torch.zeros(3, 4).t()}, True), None, 4)
    assert chosen.view(4, 3).tolist() == [[False] * 3, [False, True, True], [True] * 3, [True] * 3]


def test_the_kernel_counts_large_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []

    def spy(numbers: Tensor, *arguments: Any) -> None:
        counted.append(numbers.numel())
        count_digits(numbers, *arguments)

    monkeypatch.setattr(cpu_digits, "count_digits", spy)
    tensors = {"small": torch.ones(9), "large": torch.randn(1 << 16), "strided": torch.randn(256, 512).t()}
    chosen = choose(Scores(tensors, True), None, 100_000)
    # Two digits of the layer that is large and lies in one piece.
    assert counted == [1 << 16] * 2
    every = torch.ones(chosen.numel(), dtype=torch.bool)
    assert torch.equal(chosen, by_sort(Scores(tensors, True), every, 100_000))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.booleans(),
    st.data(),
)
def test_any_floats(values: list[float], absolute: bool, data: st.DataObject) -> None:
    scores = Scores({"a": torch.tensor(values)}, absolute)
    alive = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    drop = data.draw(st.integers(0, int(alive.sum())))
    assert torch.equal(choose(scores, {"a": alive}, drop), by_sort(scores, alive, drop))


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fill", FILLS)
def test_many_thresholds_at_once_equal_a_sort_of_each_group(fill: str, dtype: torch.dtype, absolute: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = Scores(split(FILLS[fill](generator, dtype)), absolute)
    alive = split(torch.rand(COUNT, generator=generator) < 0.6)
    layers = [["layer4"], ["layer0", "layer2"], ["layer3"], ["layer1"]]
    left = [sum(int(alive[name].sum()) for name in names) for names in layers]
    groups = [Group(names, drop) for names, drop in zip(layers, (left[0] // 3, left[1] - 1, 0, 0), strict=True)]
    pieces = Pieces.whole(scores, alive)
    masks = apply_thresholds(pieces, groups, find_thresholds(pieces, groups))
    for group in groups:
        chosen = torch.cat([masks[pieces.order.index(name)].reshape(-1) for name in group.layers])
        part = Scores({name: scores.tensors[name] for name in group.layers}, absolute)
        survivors = torch.cat([alive[name].reshape(-1) for name in group.layers])
        assert torch.equal(chosen, by_sort(part, survivors, group.drop))


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_scores_that_are_not_finite_are_counted_by_name(bad: float, dtype: torch.dtype, absolute: bool) -> None:
    scores = Scores({"good": torch.ones(3, dtype=dtype), "bad": torch.tensor([1, bad, bad], dtype=dtype)}, absolute)
    for drop in (0, 2):
        with pytest.raises(ValueError, match=r"expected finite scores, got inf or nan for 2 of 'bad'$"):
            choose(scores, None, drop)


def test_a_pruned_weight_may_be_nan() -> None:
    scores = Scores({"a": torch.tensor([float("nan"), 2.0, 1.0])}, True)
    assert choose(scores, {"a": torch.tensor([False, True, True])}, 1).tolist() == [False, True, False]


def test_integer_scores_are_refused() -> None:
    with pytest.raises(TypeError, match=r"score of 'a': expected bfloat16, .* got torch.int64"):
        choose(Scores({"a": torch.arange(3)}, True), None, 1)
