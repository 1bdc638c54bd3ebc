"""Indices follow a layer to a device and into shared memory; nothing casts them or loses their contents."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import BACKENDS, mlp, twins
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.testing import assert_close

pytestmark = pytest.mark.parametrize("backend", [*BACKENDS, "cpu"])


def indices(model: nn.Module) -> dict[str, Tensor]:
    layer = model[0]
    assert isinstance(layer, sf.SparseLinear | sf.SparseConv2d)
    return layer.op.tensors()


def check_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(left[key].dtype == right[key].dtype and torch.equal(left[key], right[key]) for key in left)


def test_a_cast_leaves_indices_alone(backend: str) -> None:
    dense, model, _ = twins(mlp(), backend)
    before = {key: tensor.clone() for key, tensor in indices(model).items()}
    for cast in (lambda m: m.half(), lambda m: m.double(), lambda m: m.type(torch.float32)):
        cast(model)
        check_equal(indices(model), before)
    x = torch.randn(3, 12)
    assert model[0].values.dtype == torch.float32
    # Through half precision both lost the same.
    assert_close(model(x), dense.half().float()(x))


def test_convolutions_are_cast_alike(backend: str) -> None:
    _, model, _ = twins(nn.Sequential(nn.Conv2d(2, 4, 3)), backend)
    before, x = copy.deepcopy(indices(model)), torch.randn(2, 2, 6, 6)
    y = model(x)
    check_equal(indices(model.type(torch.float32)), before)
    assert torch.equal(model(x), y)


def test_what_has_no_contents_cannot_come_back(backend: str) -> None:
    _, model, _ = twins(mlp(), backend)
    before = copy.deepcopy(indices(model))
    # On a real device to_empty takes the values away, and the indices stay.
    check_equal(indices(model.to_empty(device="cpu")), before)
    model.to("meta")
    assert all(tensor.is_meta for tensor in indices(model).values())
    with pytest.raises(ValueError, match=r"nothing to move: .* sparsify the model on a real"):
        model.to_empty(device="cpu")
    assert model[0].values.is_meta


def test_models_are_shared_with_their_indices(backend: str) -> None:
    _, model, _ = twins(mlp(), backend)
    before, x = copy.deepcopy(indices(model)), torch.randn(3, 12)
    y = model(x)
    model.share_memory()
    assert model[0].values.is_shared() and all(tensor.is_shared() for tensor in indices(model).values())
    check_equal(indices(model), before)
    assert torch.equal(model(x), y)
