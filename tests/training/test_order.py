import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.training.order import Order
from sparseflow.training.seeds import derive


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.data())
def test_an_epoch_shows_no_example_twice(examples: int, data: st.DataObject) -> None:
    order = Order(examples, data.draw(st.integers(1, examples)), seed=3)
    epoch = torch.cat([order.indices(step) for step in range(order.steps_per_epoch)])
    assert len(set(epoch.tolist())) == len(epoch) == order.steps_per_epoch * order.batch_size
    assert set(epoch.tolist()) <= set(range(examples))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 2**62))
def test_a_step_has_the_same_examples_whatever_was_asked_before(steps: list[int], seed: int) -> None:
    order = Order(17, 4, seed)
    asked = [order.indices(step).tolist() for step in steps]
    assert asked == [Order(17, 4, seed).indices(step).tolist() for step in steps]


def test_epochs_and_seeds_have_permutations_of_their_own() -> None:
    first, second, other = (Order(1000, 1000, seed).indices(step).tolist() for seed, step in ((1, 0), (1, 1), (2, 0)))
    assert first != second and first != other and first != sorted(first)


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_size_that_cannot_be_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"expected 1 to 10, the training examples, got {batch_size}"):
        Order(10, batch_size, seed=0)


def test_derived_seeds_depend_on_every_label() -> None:
    labels: list[tuple[object, ...]] = [("a",), ("b",), ("a", 0), ("a", 1), (), (1,)]
    seeds = [derive(seed, *rest) for seed in (1, 2, 11) for rest in labels]
    assert len(set(seeds)) == len(seeds)
    assert derive(1, "a") == derive(1, "a")
    assert all(0 <= seed < 2**63 for seed in seeds)
