from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import BACKENDS, mlp, random_masks, twins
from torch import nn

import sparseflow as sf
from sparseflow.hardware.bits import pack_bits, unpack_bits

backend_names = pytest.mark.parametrize("backend", BACKENDS)


def small(backend: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    mask = torch.tensor([[True, False, True], [False, True, False]])
    return sf.sparsify(model, {"0.weight": mask}, backend=backend)


@backend_names
def test_state_dict_is_canonical(backend: str) -> None:
    state = small(backend).state_dict()
    assert list(state) == ["0.weight_values", "0.weight_mask", "0.bias"]
    assert state["0.weight_values"].tolist() == [1.0, 3.0, 5.0]
    # Row-major, lowest bit first: places 0, 2 and 4.
    assert state["0.weight_mask"].dtype == torch.uint8 and state["0.weight_mask"].tolist() == [0b10101]
    assert not any(tensor.requires_grad for tensor in state.values())


@backend_names
def test_state_dict_does_not_alias_the_values_of_another_order(backend: str) -> None:
    model = small(backend)
    state = model.state_dict(keep_vars=True)
    state["0.weight_values"].sum().backward()
    layer = model[0]
    assert torch.equal(layer.unpack(layer.values.grad), layer.mask.float())


@pytest.mark.parametrize("source", BACKENDS)
@pytest.mark.parametrize("target", BACKENDS)
def test_states_cross_backends_and_masks_bit_for_bit(source: str, target: str) -> None:
    _, one, masks = twins(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 5)), source)
    _, two, _ = twins(copy.deepcopy(sf.densify(copy.deepcopy(one))), target, 0.7)
    assert two.load_state_dict(one.state_dict()).missing_keys == []
    x = torch.randn(3, 2, 3, 3)
    assert torch.equal(one(x), two(x))
    for index in (0, 2):
        assert torch.equal(two[index].mask, masks[f"{index}.weight"])
        assert two[index].backend == target
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


@backend_names
def test_a_load_with_the_same_mask_keeps_the_parameter(backend: str) -> None:
    model, other = small(backend), small(backend)
    values = model[0].values
    other[0].values.data.mul_(2)
    model.load_state_dict(other.state_dict())
    assert model[0].values is values
    assert model.state_dict()["0.weight_values"].tolist() == [2.0, 6.0, 10.0]


@backend_names
def test_a_dense_weight_is_taken_through_the_mask(backend: str) -> None:
    model = small(backend)
    model.load_state_dict({"0.weight": torch.full((2, 3), 7.0), "0.bias": torch.zeros(2)})
    assert model[0].weight.tolist() == [[7.0, 0.0, 7.0], [0.0, 7.0, 0.0]]


DAMAGED = {
    "pad bits": ({"0.weight_mask": torch.tensor([0b1010101], dtype=torch.uint8)}, "the mask is damaged"),
    "too few bytes": ({"0.weight_mask": torch.zeros(0, dtype=torch.uint8)}, "expected 1 bytes of torch.uint8"),
    "dtype of bits": ({"0.weight_mask": torch.tensor([21])}, "got 1 of torch.int64"),
    "count": (
        {"0.weight_mask": torch.tensor([0b11], dtype=torch.uint8)},
        "expected 2 kept weights by weight_mask, got 3",
    ),
    "bias": ({"0.bias": torch.zeros(3)}, r"0.bias: expected shape \(2,\), got \(3,\)"),
    "dense shape": ({"0.weight": torch.zeros(3, 2)}, r"0.weight: expected shape \(2, 3\), got \(3, 2\)"),
    "surplus": ({"0.weight_g": torch.zeros(3)}, r'Unexpected key\(s\) in state_dict: "0.weight_g"'),
}


@backend_names
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_states_are_refused_by_name(backend: str, damage: str) -> None:
    model = small(backend)
    changes, message = DAMAGED[damage]
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict({**model.state_dict(), **changes})


@backend_names
@pytest.mark.parametrize("missing", ["0.weight_values", "0.weight_mask", "0.bias"])
def test_missing_keys_are_named(backend: str, missing: str) -> None:
    model = small(backend)
    state = model.state_dict()
    del state[missing]
    with pytest.raises(RuntimeError, match=f'Missing key\\(s\\) in state_dict: "{missing}"'):
        model.load_state_dict(state)
    assert model.load_state_dict(state, strict=False).missing_keys == [missing]


@backend_names
def test_deepcopy_and_pickle_give_independent_equals(backend: str) -> None:
    _, model, _ = twins(nn.Sequential(nn.Conv2d(2, 4, 3, padding_mode="circular", padding=1)), backend)
    x = torch.randn(3, 2, 5, 5)
    expected = model(x).detach().clone()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
        twin(x).sum().backward()
        with torch.no_grad():
            twin[0].values.zero_()
        assert torch.equal(model(x), expected) and model[0].values.grad is None
    # The copy lives on when the original and its op are gone.
    twin = copy.deepcopy(model)
    del model
    assert torch.equal(twin(x), expected)


@backend_names
def test_models_move_with_their_indices(backend: str) -> None:
    _, model, masks = twins(mlp(), backend)
    values = model[0].values
    model.to(torch.float64)
    assert model[0].values is values and values.dtype == torch.float64
    assert model(torch.randn(2, 12, dtype=torch.float64)).dtype == torch.float64
    model.to("cpu").float()
    assert torch.equal(model[0].mask, masks["0.weight"])
    meta = copy.deepcopy(model).to("meta")
    assert {tensor.device.type for tensor in meta[0].op.tensors().values()} == {"meta"}
    assert meta[0].op.nnz == model[0].op.nnz
    assert meta(torch.empty(2, 12, device="meta")).shape == (2, 5)
    with pytest.raises(RuntimeError, match=r"0.weight: nothing can be loaded on the meta device"):
        meta.load_state_dict(model.state_dict())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_bits_come_back(flags: list[bool]) -> None:
    mask = torch.tensor(flags).view(1, -1)
    bits = pack_bits(mask)
    assert bits.tolist() == np.packbits(flags, bitorder="little").tolist()
    assert torch.equal(unpack_bits(bits, (1, len(flags)), "mask"), mask)


@backend_names
def test_a_state_of_another_mask_stops_the_optimizer_of_the_old_values(backend: str) -> None:
    _, model, _ = twins(mlp(), backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = sf.sparsify(mlp(), random_masks(mlp(), 0.8, seed=9), backend=backend)
    model.load_state_dict(other.state_dict())
    if backend == "dense":
        optimizer.step()
    else:
        with pytest.raises(ValueError, match=r"holds a parameter that .* replaced"):
            optimizer.step()
