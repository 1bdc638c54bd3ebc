"""N:M and block patterns: what they keep, what they refuse, and that rounds stay inside them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.masks import NM, Block, Masks, prune_tensors


def groups(mask: Tensor, m: int) -> Tensor:
    """How many of each m consecutive inputs are kept."""
    return mask.movedim(1, -1).unflatten(-1, (-1, m)).sum(-1)


def test_two_of_four_keeps_the_two_largest_of_each_four() -> None:
    weights = {"a": torch.tensor([[0.1, -4.0, 3.0, 2.0, 9.0, 8.0, -7.0, 6.0]])}
    masks = prune_tensors(weights, density=0.5, pattern=NM(2, 4))
    assert masks["a"].int().tolist() == [[0, 1, 1, 0, 1, 1, 0, 0]]


def test_of_equal_scores_the_first_go() -> None:
    masks = prune_tensors({"a": torch.ones(1, 8)}, density=0.5, pattern=NM(2, 4))
    assert masks["a"].int().tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]]


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_exact_at_its_density_whatever_the_shape(out: int, m: int, times: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "linear": torch.randn(out, m * times, generator=generator),
        "conv": torch.randn(out, m * times, 3, 2, generator=generator),
    }
    n = 1 + seed % m
    masks = prune_tensors(weights, density=n / m, pattern=NM(n, m), floor=0)
    assert all(bool((groups(mask, m) == n).all()) for mask in masks.values())
    # The inputs of a kernel are compared at the same place, not places with each other.
    best = weights["conv"].abs().movedim(1, -1).unflatten(-1, (-1, m)).topk(n).values.sum()
    assert float((weights["conv"].abs() * masks["conv"]).sum()) == pytest.approx(float(best))


def test_rounds_from_a_pattern_on_stay_inside_it() -> None:
    weights = {"a": torch.randn(8, 16, generator=torch.Generator().manual_seed(0))}
    first = prune_tensors(weights, rate=0.5, pattern=NM(2, 4))
    second = prune_tensors(weights, first, rate=0.25, pattern=NM(2, 4))
    assert first.nnz == 64 and second.nnz == 48 and second.issubset(first)


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_a_density_above_the_pattern_is_refused_with_the_numbers(allocation: str) -> None:
    with pytest.raises(ValueError, match=r"keep at most 8 of 16 weights \(density 0.5\), and 10 were to stay"):
        prune_tensors({"a": torch.ones(4, 4)}, density=0.6, pattern=NM(2, 4), allocation=allocation)  # type: ignore[arg-type]


def test_a_layers_own_rate_below_the_pattern_is_refused_by_name() -> None:
    weights = {"a": torch.ones(4, 4), "b": torch.ones(4, 4)}
    with pytest.raises(ValueError, match=r"lets 'b' keep at most 8 of 16 weights .* 13 were to stay"):
        prune_tensors(weights, rates={"a": 0.75, "b": 0.2}, allocation="layerwise", pattern=NM(2, 4))


def test_inputs_that_do_not_divide_are_refused_with_the_numbers() -> None:
    message = r"pattern nm: 2:4 needs inputs in multiples of 4, but '0.weight' of shape \(5, 6\) has 6"
    with pytest.raises(ValueError, match=message):
        sf.prune(nn.Sequential(nn.Linear(6, 5)), 0.5, pattern=NM(2, 4))
    with pytest.raises(ValueError, match="expected 1 <= n <= m, got n=5, m=4"):
        NM(5, 4)


def test_blocks_go_as_one_by_their_mean() -> None:
    weights = {"a": torch.tensor([[1.0, 1.0, 0.0, 9.0], [1.0, 1.0, 0.0, 0.0]])}
    masks = prune_tensors(weights, density=0.5, pattern=Block(2, 2))
    assert masks["a"].int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.floats(0.1, 1.0))
def test_blocks_are_whole_and_counted_exactly(h: int, w: int, down: int, along: int, density: float) -> None:
    weights = {"a": torch.randn(h * down, w * along, generator=torch.Generator().manual_seed(0))}
    masks = prune_tensors(weights, density=density, pattern=Block(h, w), floor=0)
    blocks = masks["a"].view(down, h, along, w).sum((1, 3))
    assert set(blocks.flatten().tolist()) <= {0, h * w}
    assert masks.nnz == h * w * round(density * down * along)


def test_what_a_block_lost_before_does_not_add_to_it() -> None:
    weights = {"a": torch.tensor([[9.0, 1.0, 2.0, 2.0]])}
    before = Masks({"a": torch.tensor([[False, True, True, True]])})
    assert prune_tensors(weights, before, density=0.5, pattern=Block(1, 2))["a"].int().tolist() == [[0, 0, 1, 1]]


def test_a_kernels_row_is_all_of_an_outputs_weights() -> None:
    masks = prune_tensors({"a": torch.arange(24.0).view(2, 2, 3, 2)}, density=0.5, pattern=Block(1, 6))
    assert masks["a"].flatten(1).int().tolist() == [[0] * 12, [1] * 12]


def test_blocks_that_do_not_divide_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"blocks of 2×4 do not divide '0.weight' of shape \(5, 8\), which is 5×8"):
        sf.prune(nn.Sequential(nn.Linear(8, 5)), 0.5, pattern=Block(2, 4))
