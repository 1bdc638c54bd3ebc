from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import mlp, random_masks
from torch import nn

import sparseflow as sf
from sparseflow.hardware.plan import Plan


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


def test_a_filter_that_matches_nothing_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"'conv\*' matches no prunable weight; they are: 0.weight, 2.weight"):
        sf.prune(mlp(), 0.5, param_filter="conv*")


VERBS: dict[str, Callable[..., Any]] = {
    "plan": lambda model, masks: sf.plan(model, masks, backend="dense"),
    "sparsify": lambda model, masks: sf.sparsify(model, masks, backend="dense"),
    "remask": lambda model, masks: sf.remask(sf.sparsify(model, random_masks(model), backend="dense"), masks),
}


@pytest.mark.parametrize("verb", VERBS)
class TestMasks:
    def test_unknown_name_gives_the_nearest(self, verb: str) -> None:
        with pytest.raises(ValueError, match=r"'0.wieght' names no prunable weight of the model; nearest: '0.weight'"):
            VERBS[verb](mlp(), {"0.wieght": ones(10, 12)})

    def test_wrong_shape_says_both(self, verb: str) -> None:
        with pytest.raises(ValueError, match=r"mask '0.weight': expected shape \(10, 12\), got \(12, 10\)"):
            VERBS[verb](mlp(), {"0.weight": ones(12, 10)})

    def test_wrong_dtype(self, verb: str) -> None:
        with pytest.raises(
            ValueError, match=r"mask '0.weight': expected a bool tensor \(True = kept\), got torch.float32"
        ):
            VERBS[verb](mlp(), {"0.weight": torch.ones(10, 12)})

    def test_no_tensor(self, verb: str) -> None:
        with pytest.raises(TypeError, match=r"mask '0.weight': expected a bool tensor \(True = kept\), got list"):
            VERBS[verb](mlp(), {"0.weight": [True]})


def test_nothing_is_swapped_where_one_mask_is_wrong() -> None:
    model = mlp()
    with pytest.raises(ValueError):
        sf.sparsify(model, {"0.weight": ones(10, 12), "2.weight": ones(1, 1)}, backend="dense")
    assert type(model[0]) is nn.Linear


def test_auto_needs_a_sample_or_a_plan() -> None:
    model = mlp()
    with pytest.raises(ValueError, match=r"pass sample= .* or plan= .* or name a backend: .*dense, dense-compact"):
        sf.sparsify(model, random_masks(model))


def test_unknown_backend() -> None:
    model = mlp()
    with pytest.raises(ValueError, match="no backend 'tritn'"):
        sf.sparsify(model, random_masks(model), backend="tritn")


def test_a_sample_of_another_kind() -> None:
    model = mlp()
    with pytest.raises(
        TypeError, match="sample: expected a tensor, tuple or mapping as the model's forward takes it, got int"
    ):
        sf.plan(model, random_masks(model), 3)


def test_sparse_layers_are_not_sparsified_again_and_dense_ones_not_remasked() -> None:
    model = mlp()
    masks = random_masks(model)
    with pytest.raises(ValueError, match=r"'0.weight' is dense; sparsify it before remask"):
        sf.remask(model, masks)
    sf.sparsify(model, masks, backend="dense")
    with pytest.raises(ValueError, match=r"already sparse: 0.weight, 2.weight; use remask"):
        sf.sparsify(model, masks, backend="dense")


def test_an_optimizer_of_another_model() -> None:
    model = mlp()
    masks = random_masks(model)
    stranger = torch.optim.SGD(mlp().parameters(), lr=0.1)
    expected = "expected an optimizer of this model, got one that holds none of its parameters; build it from"
    with pytest.raises(ValueError, match=expected):
        sf.sparsify(model, masks, backend="dense", optimizer=stranger)
    assert type(model[0]) is nn.Linear
    sf.sparsify(model, masks, backend="dense")
    with pytest.raises(ValueError, match=expected):
        sf.remask(model, masks, optimizer=stranger)
    with pytest.raises(ValueError, match=expected):
        sf.densify(model, optimizer=stranger)


@pytest.mark.parametrize("data", [{}, {"rows": 3, "left_dense": {}}, {"rows": [{"name": "a"}], "left_dense": {}}, []])
def test_a_plan_of_something_else(data: Any) -> None:
    with pytest.raises(ValueError, match="expected a plan as written by sparseflow"):
        Plan.from_json(data)
