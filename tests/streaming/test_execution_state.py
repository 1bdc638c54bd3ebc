"""What a streamed model holds: state dicts, commits, masks, and where its first weights come from."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from masked_reference import random_masks
from streamed_networks import NETWORKS
from streaming_setup import LENET, assert_same_weights, made, streamed, train
from torch import nn

import sparseflow as sf
from sparseflow.testing.closeness import same_bits


def test_state_dict_is_that_of_sparse_layers_and_loads_into_either(tmp_path: Path) -> None:
    plain = made(LENET)
    masks = random_masks(plain, 0.3)
    sparse = sf.sparsify(copy.deepcopy(plain), masks, backend="dense-compact")
    model, _, stream = streamed(plain, tmp_path, masks=masks)
    state = model.state_dict()
    assert {key: tuple(t.shape) for key, t in state.items()} == {
        key: tuple(t.shape) for key, t in sparse.state_dict().items()
    }
    assert all(same_bits(state[key], tensor) for key, tensor in sparse.state_dict().items())
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter.mul_(2)
    before = stream.read("fc1.weight")
    model.load_state_dict(sparse.state_dict())
    assert same_bits(stream.read("fc1.weight"), 2 * before)
    model.load_state_dict({name: torch.ones(p.shape) for name, p in model.named_parameters()})
    assert same_bits(stream.read("fc1.weight"), masks["fc1.weight"].float())


def test_state_dict_of_another_mask_brings_its_mask() -> None:
    one, _, there = streamed(made(LENET))
    masks = random_masks(made(LENET), 0.6)
    other, _, here = streamed(made(LENET), masks=masks)
    one.load_state_dict(other.state_dict())
    found = there.mask("fc1.weight")
    assert found is not None and torch.equal(found, masks["fc1.weight"])
    assert same_bits(there.read("fc1.weight"), here.read("fc1.weight"))


def test_state_dict_that_does_not_fit_says_what_does_not() -> None:
    model, _, _ = streamed(made(LENET))
    state = dict(model.state_dict())
    state["fc1.weight_values"] = state["fc1.weight_values"][1:]
    with pytest.raises(RuntimeError, match=r"fc1.weight: expected \d+ kept weights by its mask, got"):
        model.load_state_dict(state)
    del state["fc1.weight_values"]
    with pytest.raises(RuntimeError, match=r"Missing key.*fc1.weight"):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"fc1.bias: expected shape \(300,\), got \(3,\)"):
        model.load_state_dict({"fc1.bias": torch.ones(3)}, strict=False)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_optimizer_state_goes_to_another_store_and_training_goes_on(kind: str, tmp_path: Path) -> None:
    make_optimizer = partial(getattr(torch.optim, kind), lr=0.01, **({"momentum": 0.9} if kind == "SGD" else {}))
    one, optimizer, there = streamed(made(LENET), optimizer=make_optimizer)
    train(one, optimizer, LENET, 0, 1)
    other, again, here = streamed(made(LENET), tmp_path, optimizer=make_optimizer)
    other.load_state_dict(one.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    assert set(state["state"][0]) == {"step", *(["momentum_buffer"] if kind == "SGD" else ["exp_avg", "exp_avg_sq"])}
    again.load_state_dict(state)
    for model, one_optimizer in ((one, optimizer), (other, again)):
        train(model, one_optimizer, LENET, 2, 3)
    assert all(same_bits(here.read(name), there.read(name)) for name in here.names)


def test_a_store_is_gone_on_with_from_its_last_commit(tmp_path: Path) -> None:
    network = NETWORKS["resnet20"]
    whole, optimizer, expected = streamed(made(network))
    train(whole, optimizer, network, 0, 1, 2, 3)
    model, optimizer, stream = streamed(made(network), tmp_path)
    train(model, optimizer, network, 0, 1)
    stream.commit()
    train(model, optimizer, network, 17)
    stream.close()
    torch.manual_seed(99)
    model, optimizer, stream = streamed(network.make(), tmp_path)
    assert stream.store.step == 2
    train(model, optimizer, network, 2, 3)
    assert all(same_bits(stream.read(name), expected.read(name)) for name in expected.names)
    for (name, got), (_, buffer) in zip(model.named_buffers(), whole.named_buffers()):
        assert same_bits(got, buffer), name


def test_rollback_undoes_what_was_not_committed(tmp_path: Path) -> None:
    network = NETWORKS["resnet20"]
    model, optimizer, stream = streamed(made(network), tmp_path)
    train(model, optimizer, network, 0)
    stream.commit()
    before = [stream.read(name) for name in stream.names], [buffer.clone() for buffer in model.buffers()]
    train(model, optimizer, network, 1)
    # In the middle of a step.
    network.loss(model, 2).backward()
    stream.rollback()
    assert all(map(same_bits, (stream.read(name) for name in stream.names), before[0]))
    assert all(map(same_bits, model.buffers(), before[1]))
    assert stream.store.step == 1
    train(model, optimizer, network, 1)


def test_new_masks_keep_what_both_keep() -> None:
    model, optimizer, stream = streamed(made(LENET))
    train(model, optimizer, LENET, 0)
    before, old = stream.read("fc1.weight"), stream.mask("fc1.weight")
    new = torch.rand(before.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    stream.remask({"fc1.weight": new})
    assert same_bits(stream.read("fc1.weight"), torch.where(new, before, 0.0))
    train(model, optimizer, LENET, 1)
    assert old is not None and stream.store.nnz("fc1.weight") == int(new.sum())


def test_meta_model_is_initialised_one_module_at_a_time_as_in_memory(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))

    torch.manual_seed(5)
    expected = build()
    with torch.device("meta"):
        model = build()
    torch.manual_seed(5)
    masks = {"3.weight": torch.ones(2, 4, dtype=torch.bool)}
    model, _, stream = streamed(model, tmp_path, masks=masks)
    assert_same_weights(stream, expected)
    x = torch.randn(2, 1, 3, 3)
    assert same_bits(model(x).detach(), expected(x).detach())
    stream.commit()
    stream.close()
    with torch.device("meta"):
        again = build()
    again, _, stream = streamed(again, tmp_path, masks=masks)
    assert_same_weights(stream, expected)
    assert same_bits(again.eval()(x).detach(), expected.eval()(x).detach())


def test_meta_model_without_its_own_initialisation_needs_one() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.empty(3, device="meta"))

    with pytest.raises(ValueError, match=r"Own has no reset_parameters\(\); pass initialise="):
        streamed(Own(), masks={"w": torch.ones(3, dtype=torch.bool)})

    def ones(module: nn.Module) -> None:
        nn.init.ones_(module.w)  # type: ignore[arg-type]

    _, _, stream = streamed(Own(), masks={"w": torch.tensor([True, False, True])}, initialise=ones)
    assert stream.read("w").tolist() == [1, 0, 1]


def test_buffer_that_nobody_would_fill_is_named() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(3, device="meta"))

    model = nn.Sequential(nn.Linear(2, 2, device="meta"), Positions())
    with pytest.raises(ValueError, match="the buffer 'table' of '1' is on the meta device"):
        streamed(model)
