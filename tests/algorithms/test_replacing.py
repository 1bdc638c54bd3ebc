"""RigL and SET: what leaves, what enters, and how much of it."""

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparseflow.masks import Masks
from sparseflow.masks.criteria import Scores
from sparseflow.masks.dynamic import SET, RigL, random_masks, replace_smallest

WEIGHTS = {"fc": torch.tensor([[5.0, -1.0, 0.0], [2.0, 0.0, 0.0]])}
MASKS = Masks({"fc": torch.tensor([[True, True, False], [True, False, False]])})


def test_the_smallest_leaves_and_the_largest_gradient_enters() -> None:
    gradient = {"fc": torch.tensor([[9.0, 0.5, 1.0], [9.0, -4.0, 2.0]])}
    found = replace_smallest(WEIGHTS, MASKS, Scores(gradient, absolute=True), fraction=1 / 3)
    # -1 leaves, and -4 is the largest |gradient| of what is not kept.
    assert found["fc"].tolist() == [[True, False, False], [True, True, False]]


def test_what_has_just_left_may_enter_again() -> None:
    gradient = {"fc": torch.tensor([[0.0, 7.0, 1.0], [0.0, -4.0, 2.0]])}
    assert replace_smallest(WEIGHTS, MASKS, Scores(gradient, absolute=True), 1 / 3) == MASKS


def test_a_dropped_weight_that_stays_out_was_ranked_among_all_that_are_not_kept() -> None:
    # The trap: candidates are all but the kept, so one that was dropped is not grown before a better one.
    gradient = {"fc": torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 2.0]])}
    found = replace_smallest(WEIGHTS, MASKS, Scores(gradient, absolute=True), 2 / 3)
    assert found["fc"].tolist() == [[True, False, True], [False, False, True]]


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    density=st.floats(0.05, 0.9),
    step=st.integers(0, 400),
    drop=st.floats(0, 1),
)
def test_rigl_replaces_what_the_cosine_says_and_keeps_each_count(
    seed: int, density: float, step: int, drop: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (7, 11), "b": (5, 7), "c": (3, 5, 3, 3)}
    method = RigL(density, until=400, drop=drop)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    masks = method.start(weights, seed)
    assert masks.kept == random_masks(weights, density, "erk", seed).kept
    weights = {name: weight * masks[name] for name, weight in weights.items()}
    # What was dropped has no gradient, so that as many must be new as the law says.
    gradients = {name: torch.randn(shape, generator=generator).abs() + 1 for name, shape in shapes.items()}
    gradients = {name: torch.where(masks[name], 0.0, one) for name, one in gradients.items()}
    found = method.update(step, weights, masks, gradients, seed)
    assert found.kept == masks.kept
    fraction = drop / 2 * (1 + math.cos(math.pi * step / 400))
    for name, mask in masks.items():
        room = mask.numel() - masks.kept[name]
        assert int((found[name] & ~mask).sum()) == min(int(fraction * masks.kept[name]), room)


def test_set_draws_anew_at_each_update_and_the_same_again() -> None:
    method = SET(0.3, until=1000, drop=0.5)
    weights = {"a": torch.randn(40, 30, generator=torch.Generator().manual_seed(0))}
    masks = method.start(weights, 1)

    def grown(step: int, seed: int) -> Mapping[str, Tensor]:
        return method.update(step, weights, masks, None, seed)

    assert grown(100, 1) == grown(100, 1)
    assert grown(100, 1) != grown(200, 1)
    assert grown(100, 1) != grown(100, 2)


@pytest.mark.parametrize("method", [RigL(0.5, until=300), SET(0.5, until=300)])
def test_updates_come_every_hundred_steps_and_end(method: RigL | SET) -> None:
    assert [step for step in range(1000) if method.due(step)] == [100, 200]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": 0.0, "until": 1}, r"RigL: expected a density in \(0, 1\], got 0.0"),
        ({"density": 0.5, "until": 0}, "RigL: expected until ≥ 1 and every ≥ 1 step, got until=0, every=100"),
        ({"density": 0.5, "until": 9, "drop": 1.5}, "RigL: expected drop, the fraction replaced, in .0, 1., got 1.5"),
    ],
)
def test_numbers_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RigL(**arguments)  # type: ignore[arg-type]
