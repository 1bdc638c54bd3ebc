from __future__ import annotations

import copy

import pytest
import torch
from networks import BACKENDS, mlp, random_masks, twins
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import sparseflow as sf
from sparseflow.hardware.model import (
    current_masks,
    dense_state,
    dense_weights,
    load_dense_state,
    logical_numel,
    sparse_layers,
)
from sparseflow.hardware.names import dense_name

backend_names = pytest.mark.parametrize("backend", BACKENDS)


@pytest.mark.parametrize(
    ("raw", "dense"),
    [
        ("fc.weight", "fc.weight"),
        ("fc.values", "fc.weight"),
        ("values", "weight"),
        ("module.fc.bias", "fc.bias"),
        ("_orig_mod.module.block._checkpoint_wrapped_module.fc.values", "block.fc.weight"),
        ("a._fsdp_wrapped_module.b.weight", "a.b.weight"),
        ("my_module.fc.weight", "my_module.fc.weight"),
        ("values.fc.weight", "values.fc.weight"),
    ],
)
def test_names_are_stripped_of_wrappers(raw: str, dense: str) -> None:
    assert dense_name(raw) == dense


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def checkpointed(model: nn.Module) -> nn.Module:
    assert isinstance(model, nn.Sequential)
    model[0] = checkpoint_wrapper(model[0])
    return model


WRAPPERS = {
    "ddp": Wrapper,
    "compile": lambda model: torch.compile(model, backend="eager"),
    "both": lambda model: Wrapper(torch.compile(model, backend="eager")),
    "checkpoint": checkpointed,
}


@backend_names
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_masks_and_states_keep_their_names_under_wrappers(backend: str, wrapper: str) -> None:
    plain = mlp()
    masks = random_masks(plain)
    wrapped = WRAPPERS[wrapper](copy.deepcopy(plain))
    assert list(dense_weights(wrapped)) == list(masks)
    sf.sparsify(wrapped, masks, backend=backend)
    sf.sparsify(plain, masks, backend=backend)
    assert {name: mask.tolist() for name, mask in current_masks(wrapped).items()} == {
        name: mask.tolist() for name, mask in masks.items()
    }
    state = dense_state(plain)
    assert list(dense_state(wrapped)) == list(state) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    changed = {name: tensor + 1 for name, tensor in state.items()}
    load_dense_state(plain, changed)
    load_dense_state(wrapped, changed)
    again = dense_state(wrapped)
    assert all(torch.equal(again[name], tensor) for name, tensor in dense_state(plain).items())
    assert torch.equal(again["0.weight"], changed["0.weight"] * masks["0.weight"])
    x = torch.randn(3, 12)
    if wrapper in ("ddp", "checkpoint"):
        assert torch.equal(wrapped(x), plain(x))
    sf.densify(wrapped)
    assert not sparse_layers(wrapped)


class OwnValues(nn.Module):
    """A user's module whose own parameters happen to be called as ours."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.weight = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))
        self.register_buffer("weight_values", torch.full((2,), 5.0))
        self.fc = nn.Linear(3, 2)


@backend_names
def test_parameters_that_users_call_values_keep_that_name(backend: str) -> None:
    model = sf.sparsify(OwnValues(), {"fc.weight": torch.eye(2, 3, dtype=torch.bool)}, backend=backend)
    state = dense_state(model)
    assert set(state) == {"values", "weight", "weight_values", "fc.weight", "fc.bias"}
    other = OwnValues()
    load_dense_state(other, state)
    assert torch.equal(other.fc.weight, model.fc.weight)
    load_dense_state(model, dense_state(other))


@backend_names
def test_dense_state_is_that_of_the_densified_model_and_no_view(backend: str) -> None:
    dense, sparse, _ = twins(
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2)), backend
    )
    state, expected = dense_state(sparse), dense.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    for tensor in state.values():
        tensor.fill_(9)
    assert torch.equal(dense_state(sparse)["0.weight"], expected["0.weight"])


@backend_names
def test_a_state_that_does_not_fit_is_named(backend: str) -> None:
    _, sparse, _ = twins(mlp(), backend)
    state = dense_state(sparse)
    with pytest.raises(ValueError, match=r"this state does not fit the model: .*0.weight: expected shape \(10, 12\)"):
        load_dense_state(sparse, {**state, "0.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"this state does not fit the model: .*other"):
        load_dense_state(sparse, {**state, "other": torch.zeros(2)})


@backend_names
def test_logical_numel_counts_the_dense_model(backend: str) -> None:
    dense, sparse, _ = twins(mlp(), backend)
    assert logical_numel(sparse) == logical_numel(dense) == 12 * 10 + 10 + 10 * 5 + 5
