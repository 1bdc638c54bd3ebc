import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparseflow.data import DatasetSplit, TensorSplit, TokenSplit
from sparseflow.data.splits import shuffled


def test_tensor_split_hands_out_the_examples_in_the_order_asked_for() -> None:
    split = TensorSplit(torch.arange(6).reshape(3, 2), torch.tensor([10, 11, 12]))
    inputs, targets = split.batch(torch.tensor([2, 0, 2]))
    assert len(split) == 3
    assert inputs.tolist() == [[4, 5], [0, 1], [4, 5]]
    assert targets.tolist() == [12, 10, 12]


def test_tensor_split_refuses_targets_of_another_number() -> None:
    with pytest.raises(ValueError, match="got 3 and 2"):
        TensorSplit(torch.zeros(3, 2), torch.zeros(2))


def test_token_split_by_hand() -> None:
    split = TokenSplit(torch.arange(100, 110), context=3, stride=2)
    inputs, targets = split.batch(torch.tensor([0, 3]))
    assert len(split) == 4
    assert inputs.tolist() == [[100, 101, 102], [106, 107, 108]]
    assert targets.tolist() == [[101, 102, 103], [107, 108, 109]]


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 60), st.integers(1, 20), st.integers(1, 20))
def test_token_split_holds_every_window_that_fits_and_no_other(count: int, context: int, stride: int) -> None:
    if count <= context:
        with pytest.raises(ValueError, match=f"at least {context + 1} tokens"):
            TokenSplit(torch.arange(count), context, stride)
        return
    split = TokenSplit(torch.arange(count), context, stride)
    starts = [i for i in range(0, count, stride) if i + context < count]
    inputs, targets = split.batch(torch.arange(len(split)))
    assert inputs.tolist() == [list(range(i, i + context)) for i in starts]
    assert torch.equal(targets, inputs + 1)


def test_an_epoch_without_overlap_predicts_each_token_once() -> None:
    _, targets = (split := TokenSplit(torch.arange(13), 4, 4)).batch(torch.arange(len(split)))
    assert targets.flatten().tolist() == list(range(1, 13))


@pytest.mark.parametrize(("context", "stride"), [(0, 1), (1, 0)])
def test_token_split_refuses_empty_windows(context: int, stride: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TokenSplit(torch.arange(9), context, stride)


def test_dataset_split_stacks_the_items_of_any_dataset() -> None:
    items = [(torch.tensor([float(i)]), i) for i in range(5)]
    inputs, targets = DatasetSplit(items).batch(torch.tensor([4, 1]))
    assert len(DatasetSplit(items)) == 5
    assert inputs.tolist() == [[4.0], [1.0]]
    assert targets.tolist() == [4, 1]
    assert targets.dtype == torch.int64


@pytest.mark.parametrize("item", [torch.zeros(2), (torch.zeros(2), 1, 2), (torch.zeros(2), "cat")])
def test_dataset_split_refuses_items_that_are_no_pair_of_tensors(item: Tensor | tuple[object, ...]) -> None:
    with pytest.raises(TypeError, match="expected"):
        DatasetSplit([item, item]).batch(torch.tensor([0, 1]))


def test_the_order_of_the_splits_is_fixed_for_good() -> None:
    # Figures measured on one order cannot be compared with those of another.
    assert shuffled(60_000)[:4].tolist() == [36044, 10678, 57327, 55074]
    assert torch.equal(shuffled(99).sort().values, torch.arange(99))
