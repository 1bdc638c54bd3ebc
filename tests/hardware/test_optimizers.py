from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import BACKENDS, masked_twin, mlp, random_masks, twins
from torch import nn

import sparseflow as sf
from sparseflow.hardware.layers import SparseLayer
from sparseflow.testing import assert_close

backend_names = pytest.mark.parametrize("backend", BACKENDS)
ELEMENT_WISE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01),
    "fused AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01),
}
MIXING: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Muon": lambda parameters: torch.optim.Muon(parameters, lr=0.1),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.1),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def layers(model: nn.Module) -> list[SparseLayer]:
    return [module for module in model.modules() if isinstance(module, SparseLayer)]


@backend_names
@pytest.mark.parametrize("kind", ELEMENT_WISE)
def test_element_wise_optimizers_mean_the_same_on_every_backend(backend: str, kind: str) -> None:
    """Against masked training written out: gradient and weight masked by hand, decay by logical shape."""
    dense, sparse, masks = twins(mlp(), backend)
    matrices = [parameter for parameter in dense.parameters() if parameter.dim() == 2]
    biases = [parameter for parameter in dense.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": biases, "weight_decay": 0.0}]
    by_hand = ELEMENT_WISE[kind](groups)
    ours = ELEMENT_WISE[kind](sf.param_groups(sparse, weight_decay=0.3))
    for seed in range(4):
        step(sparse, ours, seed)
        by_hand.zero_grad()
        dense(torch.randn(6, 12, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        for parameter, mask in zip(matrices, masks.values()):
            parameter.grad.mul_(mask)
        by_hand.step()
    for (name, mask), matrix, layer in zip(masks.items(), matrices, layers(sparse)):
        assert_close(layer.weight, matrix, name)
        assert not layer.weight[~mask].any()


def test_param_groups_go_by_logical_shape_and_hold_each_parameter_once() -> None:
    model = nn.ModuleDict(
        {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "e": nn.Embedding(3, 4)}
    )
    model["b"].weight = model["a"].weight
    sf.sparsify(model, {"a.weight": torch.eye(4, dtype=torch.bool)}, backend="dense-compact")
    decay, rest = sf.param_groups(model, weight_decay=0.1)
    assert decay["weight_decay"] == 0.1 and rest["weight_decay"] == 0.0
    assert {id(p) for p in decay["params"]} == {id(model["a"].values), id(model["e"].weight)}
    assert len(decay["params"]) == 2 and len(rest["params"]) == 4


@backend_names
def test_sparsify_puts_the_values_in_the_weights_place(backend: str) -> None:
    model = mlp()
    first, second = list(model[0].parameters()), list(model[2].parameters())
    optimizer = torch.optim.Adam([{"params": first, "lr": 0.1}, {"params": second, "lr": 0.2}])
    step(model, optimizer, 0)
    before = copy.deepcopy(optimizer.state[model[2].weight])
    old = model[2].weight
    masks = random_masks(model)
    expected = masked_twin(model, masks)
    sf.sparsify(model, masks, backend=backend, optimizer=optimizer)
    layer = model[2]
    assert optimizer.param_groups[1]["params"][0] is layer.values and optimizer.param_groups[1]["lr"] == 0.2
    assert old not in optimizer.state
    state = optimizer.state[layer.values]
    assert torch.equal(state["step"], before["step"])
    assert layer.values.grad is None
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(layer.unpack(state[key]), before[key] * masks["2.weight"])
        assert state[key].shape == layer.values.shape
    assert torch.equal(layer.weight, expected[2].weight)
    step(model, optimizer, 1)


@backend_names
def test_remask_moves_values_and_every_optimizer_tensor(backend: str) -> None:
    _, model, old = twins(mlp(), backend)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step(model, optimizer, 0)
    new = random_masks(model, 0.3, seed=7)
    dense = {layer: layer.weight.detach() for layer in layers(model)}
    moments = {layer: layer.unpack(optimizer.state[layer.values]["exp_avg"]) for layer in layers(model)}
    assert sf.remask(model, new, optimizer=optimizer) is model
    for layer, mask, before in zip(layers(model), new.values(), old.values()):
        assert torch.equal(layer.mask, mask)
        # Kept by both masks: stays. Regrown: zero, and its moments too.
        assert torch.equal(layer.weight, dense[layer] * mask)
        assert not layer.weight[mask & ~before].any()
        assert torch.equal(layer.unpack(optimizer.state[layer.values]["exp_avg"]), moments[layer] * mask)
        assert optimizer.state[layer.values]["step"] == 1
        assert layer.values.grad is None
    step(model, optimizer, 1)


@backend_names
def test_equal_nnz_keeps_the_parameter(backend: str) -> None:
    _, model, masks = twins(mlp(), backend)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step(model, optimizer, 0)
    parameters = [layer.values for layer in layers(model)]
    sf.remask(model, {name: mask.flip(1) for name, mask in masks.items()}, optimizer=optimizer)
    assert all(layer.values is parameter for layer, parameter in zip(layers(model), parameters))
    assert all(parameter.grad is None for parameter in parameters)
    for layer, mask in zip(layers(model), masks.values()):
        assert torch.equal(layer.mask, mask.flip(1))
        assert not layer.unpack(optimizer.state[layer.values]["exp_avg"])[~layer.mask].any()
    step(model, optimizer, 1)
    assert not any(layer.unpack(layer.values.detach())[~layer.mask].any() for layer in layers(model))


@backend_names
def test_equal_nnz_without_the_optimizer_refuses_state_of_the_old_mask(backend: str) -> None:
    """The moments of a weight that is pruned now would move it from zero again."""
    _, model, masks = twins(mlp(), backend)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step(model, optimizer, 0)
    sf.remask(model, masks)
    # The same masks: nothing is stale.
    step(model, optimizer, 1)
    sf.remask(model, {name: mask.flip(1) for name, mask in masks.items()})
    with pytest.raises(ValueError, match="belongs to the mask before remask"):
        step(model, optimizer, 2)
    fresh = torch.optim.Adam(model.parameters(), lr=0.1)
    step(model, fresh, 2)
    step(model, fresh, 3)


@backend_names
def test_remask_of_some_layers_leaves_the_others(backend: str) -> None:
    _, model, _ = twins(mlp(), backend)
    untouched = layers(model)[1]
    values, op = untouched.values, untouched.op
    sf.remask(model, {"0.weight": torch.ones(10, 12, dtype=torch.bool)})
    assert untouched.values is values and untouched.op is op


@backend_names
def test_densify_gives_the_weights_back_with_their_state(backend: str) -> None:
    _, model, _ = twins(mlp(), backend)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step(model, optimizer, 0)
    layer = layers(model)[0]
    moment, weight = layer.unpack(optimizer.state[layer.values]["exp_avg"]), layer.weight.detach()
    sf.densify(model, optimizer=optimizer)
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], moment)
    assert torch.equal(model[0].weight, weight)
    step(model, optimizer, 1)


STALE: dict[str, Callable[[nn.Module], Any]] = {
    "sparsify": lambda model: sf.sparsify(sf.densify(model), random_masks(model), backend="dense"),
    "remask": lambda model: sf.remask(model, random_masks(model, 0.1, seed=5)),
    "densify": lambda model: sf.densify(model),
}


@pytest.mark.parametrize("verb", STALE)
def test_an_optimizer_that_was_left_behind_raises_at_its_next_step(verb: str) -> None:
    _, model, _ = twins(mlp(), "dense-compact")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    STALE[verb](model)
    with pytest.raises(
        ValueError, match=r"holds a parameter that sparsify, remask or densify has replaced.*optimizer="
    ):
        optimizer.step()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


@pytest.mark.parametrize("kind", MIXING)
def test_optimizers_that_mix_elements_run_on_dense_remasked_after_each_step(kind: str) -> None:
    dense, sparse, masks = twins(nn.Sequential(nn.Linear(12, 8, bias=False)), "dense")
    ours, by_hand = MIXING[kind](sparse.parameters()), MIXING[kind](dense.parameters())
    for seed in range(3):
        step(sparse, ours, seed)
        by_hand.zero_grad()
        dense(torch.randn(6, 12, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        dense[0].weight.grad.mul_(masks["0.weight"])
        by_hand.step()
        moved = bool(dense[0].weight[~masks["0.weight"]].any())
        assert moved or kind == "Adafactor"
        with torch.no_grad():
            dense[0].weight.mul_(masks["0.weight"])
        assert torch.equal(sparse[0].values, dense[0].weight)


@pytest.mark.parametrize("kind", MIXING)
def test_optimizers_that_mix_elements_are_refused_elsewhere(kind: str) -> None:
    model = nn.Sequential(nn.Linear(12, 8, bias=False))
    optimizer = MIXING[kind](model.parameters())
    message = f"{kind} combines elements of a weight.*'dense-compact'.*use backend='dense'"
    with pytest.raises(ValueError, match=message):
        sf.sparsify(model, random_masks(model), backend="dense-compact", optimizer=optimizer)
    assert type(model[0]) is nn.Linear
    sf.sparsify(model, random_masks(model), backend="dense", optimizer=optimizer)
    step(model, optimizer, 0)


def test_adafactor_built_on_flat_values_is_refused_at_its_step() -> None:
    _, model, _ = twins(mlp(), "dense-compact")
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.1)
    model(torch.randn(2, 12)).sum().backward()
    with pytest.raises(ValueError, match="Adafactor combines elements"):
        optimizer.step()


def test_a_subclass_of_a_mixing_optimizer_mixes_too() -> None:
    class Mine(torch.optim.Adafactor):
        pass

    _, model, _ = twins(mlp(), "dense-compact")
    model(torch.randn(2, 12)).sum().backward()
    with pytest.raises(ValueError, match="Mine combines elements"):
        Mine(model.parameters(), lr=0.1).step()


def test_mixing_optimizers_of_dense_models_are_left_alone() -> None:
    twins(mlp(), "dense-compact")
    model = nn.Linear(12, 5, bias=False)
    step(model, torch.optim.Muon(model.parameters(), lr=0.1), 0)


def test_an_optimizer_with_a_list_of_its_own_is_refused() -> None:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ValueError, match="LBFGS keeps a list of the parameters that cannot be changed; build it after"):
        sf.sparsify(model, random_masks(model), backend="dense", optimizer=optimizer)
