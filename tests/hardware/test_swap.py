from __future__ import annotations

import copy
import types
from collections.abc import Callable

import pytest
import torch
from networks import BACKENDS, masked_twin, mlp, random_masks, twins
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.weight_norm import WeightNorm

import sparseflow as sf
from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.survey import survey
from sparseflow.testing import assert_close

backend_names = pytest.mark.parametrize("backend", BACKENDS)


@backend_names
def test_sparsify_and_densify_are_in_place_and_exact(backend: str) -> None:
    model = mlp()
    masks = random_masks(model)
    expected = masked_twin(model, masks).state_dict()
    relu = model[1]
    assert sf.sparsify(model, masks, backend=backend) is model
    assert isinstance(model[0], sf.SparseLinear) and model[1] is relu
    assert sf.densify(model) is model
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    # Zeros come back as +0.0.
    assert not torch.signbit(model[0].weight[~masks["0.weight"]]).any()


@backend_names
def test_only_layers_with_a_mask_are_replaced(backend: str) -> None:
    model = mlp()
    sf.sparsify(model, {"2.weight": torch.ones(5, 10, dtype=torch.bool)}, backend=backend)
    assert type(model[0]) is nn.Linear and type(model[2]) is sf.SparseLinear


@backend_names
def test_a_model_that_is_itself_a_layer_is_returned_anew(backend: str) -> None:
    layer = nn.Linear(4, 3)
    sparse = sf.sparsify(layer, {"weight": torch.ones(3, 4, dtype=torch.bool)}, backend=backend)
    assert isinstance(sparse, sf.SparseLinear)
    assert type(sf.densify(sparse)) is nn.Linear


@backend_names
def test_modes_biases_and_the_rng_stay(backend: str) -> None:
    model = mlp()
    model[0].eval()
    bias, state = model[0].bias, torch.get_rng_state()
    sf.sparsify(model, random_masks(model), backend=backend)
    assert not model[0].training and model[2].training and model[0].bias is bias
    sf.densify(model)
    assert not model[0].training and model[2].training and model[0].bias is bias
    assert torch.equal(torch.get_rng_state(), state)


@backend_names
def test_hooks_survive_and_their_handles_still_remove_them(backend: str) -> None:
    model = mlp()
    calls: list[str] = []
    handles = [
        model[0].register_forward_pre_hook(lambda module, inputs: calls.append("pre")),
        model[0].register_forward_hook(lambda module, inputs, kwargs, y: calls.append("post"), with_kwargs=True),
        model[0].register_full_backward_hook(lambda module, dx, dy: calls.append("backward")),
    ]
    sf.sparsify(model, random_masks(model), backend=backend)
    model(torch.randn(2, 12, requires_grad=True)).sum().backward()
    assert calls == ["pre", "post", "backward"]
    sf.densify(model)
    model(torch.randn(2, 12, requires_grad=True)).sum().backward()
    assert len(calls) == 6
    for handle in handles:
        handle.remove()
    model(torch.randn(2, 12)).sum().backward()
    assert len(calls) == 6


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first
        self.inner = nn.ModuleList([self.first])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner[0](self.again(self.first(x)))


@backend_names
def test_a_shared_module_is_replaced_under_all_its_names(backend: str) -> None:
    dense, sparse, masks = twins(Shared(), backend)
    assert list(masks) == ["first.weight"]
    assert isinstance(sparse.first, sf.SparseLinear)
    assert sparse.first is sparse.again is sparse.inner[0]
    x = torch.randn(3, 6)
    assert_close(sparse(x), dense(x))
    back = sf.densify(sparse)
    assert back.first is back.again is back.inner[0] and type(back.first) is nn.Linear


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


@backend_names
def test_tied_weights_get_one_values(backend: str) -> None:
    dense, sparse, masks = twins(Tied(), backend)
    assert list(masks) == ["a.weight"]
    assert sparse.a.values is sparse.b.values and sparse.a is not sparse.b
    x = torch.randn(3, 6)
    dense(x).sum().backward()
    sparse(x).sum().backward()
    assert_close(sparse.a.unpack(sparse.a.values.grad), dense.a.weight.grad * masks["a.weight"])
    assert sparse.a.bias is not sparse.b.bias
    copied = copy.deepcopy(sparse)
    assert copied.a.values is copied.b.values and copied.a.values is not sparse.a.values
    back = sf.densify(sparse)
    assert back.a.weight is back.b.weight


@backend_names
def test_tied_weights_follow_a_new_mask_together(backend: str) -> None:
    _, sparse, _ = twins(Tied(), backend)
    sf.remask(sparse, random_masks(sparse, 0.2, seed=3))
    assert sparse.a.values is sparse.b.values and sparse.a.op is sparse.b.op
    other = sf.sparsify(Tied(), random_masks(Tied(), 0.6, seed=4), backend=backend)
    sparse.load_state_dict(other.state_dict())
    assert sparse.a.values is sparse.b.values and sparse.a.op is sparse.b.op
    x = torch.randn(3, 6)
    assert torch.equal(sparse(x), other(x))


def test_a_mask_for_the_second_of_two_tied_weights_names_both() -> None:
    with pytest.raises(ValueError, match=r"'b.weight'.*tied to 'a.weight'"):
        sf.sparsify(Tied(), {"b.weight": torch.ones(6, 6, dtype=torch.bool)}, backend="dense")


def test_convolutions_that_share_a_weight_but_use_it_otherwise_stay_dense() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2))
    model[1].weight = model[0].weight
    found = survey(model)
    assert not found.sites
    assert "1.weight" in found.left_dense["0.weight"] and "0.weight" in found.left_dense["1.weight"]


def test_a_head_tied_to_an_embedding_stays_dense() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["embed"].weight
    found = survey(model)
    assert not found.sites
    assert found.left_dense["head.weight"] == "it is tied to 'embed.weight' of Embedding"
    with pytest.raises(ValueError, match=r"mask 'head.weight': this weight stays dense, because it is tied to"):
        sf.sparsify(model, {"head.weight": torch.ones(9, 4, dtype=torch.bool)}, backend="dense")


class MyLinear(nn.Linear):
    pass


class MyConv2d(nn.Conv2d):
    pass


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrised() -> nn.Module:
    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def pruned_bias() -> nn.Module:
    layer = nn.Linear(4, 3)
    prune.l1_unstructured(layer, "bias", 0.5)
    return layer


def old_weight_norm() -> nn.Module:
    layer = nn.Linear(4, 3)
    WeightNorm.apply(layer, "weight", 0)
    return layer


def patched_forward() -> nn.Module:
    layer = nn.Linear(4, 3)
    layer.forward = types.MethodType(lambda self, x: x, layer)
    return layer


def with_a_child() -> nn.Module:
    layer = nn.Linear(4, 3)
    layer.lora = nn.Linear(4, 3)
    return layer


STAYS_DENSE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear subclass": (lambda: MyLinear(4, 3), "MyLinear is a subclass of Linear"),
    "conv2d subclass": (lambda: MyConv2d(4, 3, 1), "MyConv2d is a subclass of Conv2d"),
    "parametrised": (parametrised, "it is parametrised"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), "it is parametrised"),
    "old weight norm": (old_weight_norm, "its weight is computed from other parameters"),
    "torch prune": (lambda: prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.5), "its weight is computed"),
    "torch prune of the bias": (pruned_bias, "beside weight and bias it holds bias_mask, bias_orig"),
    "patched forward": (patched_forward, "its forward was replaced"),
    "a child": (with_a_child, "beside weight and bias it holds lora"),
    "no inputs": (lambda: nn.Linear(0, 3), "it has no weights"),
    "lazy": (lambda: nn.LazyLinear(3), "LazyLinear is a subclass of Linear"),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
@pytest.mark.parametrize("kind", STAYS_DENSE)
def test_what_cannot_be_replaced_stays_dense_with_the_reason(kind: str) -> None:
    make, reason = STAYS_DENSE[kind]
    model = nn.Sequential(make(), nn.Linear(3, 2))
    found = survey(model)
    assert reason in found.left_dense["0.weight"]
    assert "0.weight" not in found.sites and "1.weight" in found.sites
    masks = {"1.weight": torch.ones(2, 3, dtype=torch.bool)}
    plan = sf.plan(model, masks, backend="dense")
    assert reason in plan.left_dense["0.weight"] and reason in str(plan)


def test_other_kinds_of_layers_are_not_listed() -> None:
    model = nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4), nn.Conv1d(1, 1, 1), nn.BatchNorm2d(4))
    found = survey(model)
    assert not found.sites and not found.left_dense


def test_current_masks_are_those_given() -> None:
    model = mlp()
    masks = random_masks(model)
    sf.sparsify(model, masks, backend="dense-compact")
    for index in (0, 2):
        layer = model[index]
        assert isinstance(layer, SparseLayer)
        assert torch.equal(layer.mask, masks[f"{index}.weight"])
