from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparseflow.masks import Scores, apply_threshold, find_threshold, keys

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SIZES = [(33, 7), (1,), (63, 5), (0, 4), (1000,)]
COUNT = sum(torch.Size(size).numel() for size in SIZES)


def split(flat: Tensor) -> dict[str, Tensor]:
    parts = torch.split(flat, [torch.Size(size).numel() for size in SIZES])
    return {f"layer{i}": part.reshape(size) for i, (part, size) in enumerate(zip(parts, SIZES, strict=True))}


def by_sort(scores: Scores, alive: Tensor, drop: int) -> Tensor:
    """Returns the flat mask after a stable sort of all scores, the definition of a threshold's choice."""
    flat = torch.cat([score.double().reshape(-1) for score in scores.tensors.values()])
    flat = flat.abs() if scores.absolute else flat
    order = torch.sort(flat, stable=True).indices
    order = order[alive[order]]
    mask = alive.clone()
    mask[order[:drop]] = False
    return mask


def choose(scores: Scores, survivors: Mapping[str, Tensor] | None, drop: int) -> Tensor:
    masks = apply_threshold(scores, survivors, find_threshold(scores, survivors, drop))
    assert {name: mask.shape for name, mask in masks.items()} == {n: t.shape for n, t in scores.tensors.items()}
    return torch.cat([mask.reshape(-1) for mask in masks.values()])


def ties(generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    values = torch.randn(COUNT, generator=generator, dtype=torch.float64)
    return (values * 50).round().to(dtype) / 50


FILLS: dict[str, Callable[[torch.Generator, torch.dtype], Tensor]] = {
    "normal": lambda g, dtype: torch.randn(COUNT, generator=g, dtype=torch.float64).to(dtype),
    "ties": ties,
    # Many scores that differ in their last digit only.
    "close": lambda g, dtype: 1 + torch.randint(60, (COUNT,), generator=g).to(dtype) * torch.finfo(dtype).eps,
    "equal": lambda g, dtype: torch.full((COUNT,), -0.5, dtype=dtype),
    "zeros of both signs": lambda g, dtype: (
        torch.zeros(COUNT, dtype=dtype) * torch.where(torch.rand(COUNT, generator=g) < 0.5, 1.0, -1.0).to(dtype)
    ),
    "denormals": lambda g, dtype: (
        torch.randint(-9, 9, (COUNT,), generator=g).to(torch.float64).to(dtype) * torch.finfo(dtype).smallest_normal / 8
    ),
    "extremes": lambda g, dtype: (
        torch.tensor([1.0, -1.0, 0.0], dtype=dtype)[torch.randint(3, (COUNT,), generator=g)] * torch.finfo(dtype).max
    ),
}


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
    tensor = torch.zeros(3, 4).t()
    masks = apply_threshold(Scores({"a": tensor}, True), None, find_threshold(Scores({"a": tensor}, True), None, 4))
    assert masks["a"].tolist() == [[False] * 3, [False, True, True], [True] * 3, [True] * 3]
    assert masks["a"].is_contiguous()


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


@dataclass
class Recorder:
    """Stands for a collective: records what this process contributes, adds what the others do."""

    others: list[Tensor] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, counts: Tensor) -> Tensor:
        self.seen.append(counts)
        return counts + self.others.pop(0) if self.others else counts


@dataclass
class Offsets:
    """Stands for the exclusive scan of ties over the processes."""

    offsets: Tensor | None = None
    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, counts: Tensor) -> Tensor:
        self.seen.append(counts)
        return counts if self.offsets is None else self.offsets


@pytest.mark.parametrize("drop", [1, 400, 1000])
def test_equals_a_stable_sort_however_it_is_spread_over_processes(drop: int) -> None:
    whole = split(ties(torch.Generator().manual_seed(0), torch.float32))
    slices = {name: tensor.reshape(-1).tensor_split(3) for name, tensor in whole.items()}
    parts = [Scores({name: part[rank] for name, part in slices.items()}, True) for rank in range(3)]
    joined = Scores({f"{name}/{rank}": part[rank] for name, part in slices.items() for rank in range(3)}, True)
    threshold = find_threshold(joined, None, drop)

    recorders = [Offsets() for _ in parts]
    for part, recorder in zip(parts, recorders, strict=True):
        apply_threshold(part, None, threshold, recorder)
    counts = torch.stack([recorder.seen[0] for recorder in recorders], dim=1).reshape(-1)
    offsets = (counts.cumsum(0) - counts).reshape(len(whole), 3)
    masks = [apply_threshold(part, None, threshold, Offsets(offsets[:, r])) for r, part in enumerate(parts)]

    flat = torch.cat([masks[rank][name] for name in whole for rank in range(3)])
    assert torch.equal(flat, by_sort(joined, torch.ones(COUNT, dtype=torch.bool), drop))


def test_histograms_of_other_processes_are_added() -> None:
    mine, theirs = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.5, 1.5, 9.0])
    both = find_threshold(Scores({"a": torch.cat([mine, theirs])}, True), None, 3)
    assert (both.ties, both.ties_dropped) == (2, 1)
    # 1.5 is the third lowest of both and of theirs alone, so theirs are histograms of the same digits.
    recorder = Recorder()
    find_threshold(Scores({"a": theirs}, True), None, 3, recorder)
    assert find_threshold(Scores({"a": mine}, True), None, 3, Recorder(others=recorder.seen)) == both


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_scores_that_are_not_finite_are_counted_by_name(bad: float, dtype: torch.dtype, absolute: bool) -> None:
    scores = Scores({"good": torch.ones(3, dtype=dtype), "bad": torch.tensor([1, bad, bad], dtype=dtype)}, absolute)
    for drop in (0, 2):
        with pytest.raises(ValueError, match=r"expected finite scores, got inf or nan for 2 of 'bad'$"):
            find_threshold(scores, None, drop)


def test_a_pruned_weight_may_be_nan() -> None:
    scores = Scores({"a": torch.tensor([float("nan"), 2.0, 1.0])}, True)
    assert choose(scores, {"a": torch.tensor([False, True, True])}, 1).tolist() == [False, True, False]


def test_every_process_hears_of_another_ones_nan() -> None:
    nan = torch.tensor([float("nan")])

    def add(counts: Tensor) -> Tensor:
        other = torch.zeros_like(counts)
        other[-1] = 1
        return counts + other

    with pytest.raises(ValueError, match="inf or nan for weights of another process"):
        find_threshold(Scores({"a": torch.ones(3)}, True), None, 1, add)
    with pytest.raises(ValueError, match="inf or nan for 1 of 'a'"):
        find_threshold(Scores({"a": nan}, True), None, 1, add)


def test_integer_scores_are_refused() -> None:
    with pytest.raises(TypeError, match=r"score of 'a': expected bfloat16, .* got torch.int64"):
        find_threshold(Scores({"a": torch.arange(3)}, True), None, 1)
