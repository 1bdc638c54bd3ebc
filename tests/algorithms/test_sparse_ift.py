"""Sparse-IFT: equal FLOPs to the last one, and what each transform is at density 1."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sparseflow as sf
from sparseflow.algorithms import make_dynamic
from sparseflow.masks import Masks
from sparseflow.recipes import load_recipe, make_trainer
from sparseflow.training.pruning import Start
from sparseflow.training.sparse_ift import Doped, Factorized, Parallel

TRANSFORMS = [sf.sparse_ift.parallel, sf.sparse_ift.factorized, sf.sparse_ift.doped]


def mlp(inputs: int = 20, hidden: int = 33, last: int = 17) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, last), nn.ReLU(), nn.Linear(last, 5))


def products(model: nn.Module, masks: Masks) -> int:
    """Products a row: kept weights of masked layers, all weights of the others."""
    weights = (p for name, p in model.named_parameters() if p.dim() >= 2 and name not in masks)
    return masks.nnz + sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("transform", TRANSFORMS)
@settings(deadline=None, max_examples=50)
@given(density=st.floats(0.03, 1), sizes=st.tuples(st.integers(3, 60), st.integers(3, 60), st.integers(3, 60)))
def test_products_are_equal_to_the_last_one(
    transform: Callable[[nn.Module, float], Masks], density: float, sizes: tuple[int, int, int]
) -> None:
    model = mlp(*sizes)
    before = products(model, Masks({}))
    masks = transform(model, density)
    assert products(model, masks) == before
    assert model(torch.ones(2, sizes[0])).shape == (2, 5)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_densities_are_what_was_asked_for(transform: Callable[[nn.Module, float], Masks]) -> None:
    masks = transform(mlp(200, 300, 100), 0.1)
    # A rank, or an inner unit, more or less is (I + O) / (I · O) of a layer: up to 0.0133 of the second.
    assert masks.density == pytest.approx(0.1, abs=0.0133)


def test_torch_counts_as_many_for_the_dense_model_as_masks_keep() -> None:
    model = mlp()
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(1, 20))
    assert counter.get_total_flops() == 2 * products(model, Masks({}))


def test_what_stands_in_the_place_of_hidden_layers_alone() -> None:
    for transform, kind in zip(TRANSFORMS, (Parallel, Factorized, Doped), strict=True):
        model = mlp()
        transform(model, 0.25)
        assert [type(module) for module in model] == [kind, nn.ReLU, kind, nn.ReLU, nn.Linear]  # type: ignore[attr-defined]
    model = mlp(20, 32, 16)
    sf.sparse_ift.factorized(model, 0.25)
    # d = 20 · 32 / (52 · 0.25) = 49.2
    assert model.get_submodule("0.down").out_features == 50
    model = mlp(20, 32, 16)
    sf.sparse_ift.doped(model, 0.25)
    # rank = 0.75 · 20 · 32 / 52 = 9.2
    assert model.get_submodule("0.down").out_features == 9


@pytest.mark.parametrize("transform", [sf.sparse_ift.parallel, sf.sparse_ift.doped])
def test_at_density_one_it_is_the_dense_model(transform: Callable[[nn.Module, float], Masks]) -> None:
    model, x = mlp(), torch.randn(4, 20)
    twin = copy.deepcopy(model)
    masks = transform(model, 1.0)
    assert masks.density == 1
    assert torch.equal(model(x), twin(x))


def test_kernels_have_branches_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))
    masks = sf.sparse_ift.parallel(model, 0.25)
    assert masks.kept == {f"0.branches.{number}.weight": 54 for number in range(4)}
    assert model(torch.ones(2, 3, 6, 6)).shape == (2, 4)


def test_a_wide_network_keeps_what_the_narrow_one_has() -> None:
    narrow, model = sf.models.lenet_300_100(), sf.models.lenet_300_100(width=2)
    masks = sf.sparse_ift.wide(narrow, model)
    assert masks.kept == {"fc1.weight": 235_200, "fc2.weight": 30_000, "fc3.weight": 1_000}
    # k = 1 / √0.25 = 2: the hidden layer is four times as large.
    assert masks["fc2.weight"].numel() == 120_000
    same = sf.sparse_ift.wide(narrow, narrow)
    assert same.density == 1
    with pytest.raises(ValueError, match=r"wide: fc1.weight: expected at least the 470400 weights .* got 235200"):
        sf.sparse_ift.wide(model, narrow)
    with pytest.raises(ValueError, match=r"wide: expected layers of the same names, got some .*: 0\.weight"):
        sf.sparse_ift.wide(mlp(), narrow)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("backend", ["dense", "cpu"])
def test_it_trains_sparse(transform: Callable[[nn.Module, float], Masks], backend: str) -> None:
    model = mlp()
    masks = transform(model, 0.25)
    sf.sparsify(model, masks, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model(torch.ones(3, 20)).detach()
    model(torch.ones(3, 20)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model(torch.ones(3, 20)), before)
    dense = sf.densify(model)
    for name, mask in masks.items():
        assert not dense.get_parameter(name)[~mask].any()


def test_the_recipe_has_the_flops_of_the_dense_network() -> None:
    recipe = load_recipe("sparse_ift", ["data=digits", "model.options.options={inputs: 64}"])
    model = make_trainer(recipe, 1).model
    method = make_dynamic(recipe.algorithm.name, recipe.algorithm.options, 10)
    assert method is not None
    masks = Start(method, recipe.pruning.param_filter, 1)(model, Masks({}), 1)
    narrow = sf.models.lenet_300_100(inputs=64)
    assert products(model, masks) == pytest.approx(products(narrow, Masks({})), rel=1e-4)
    with pytest.raises(ValueError, match="no transform 'wide'; available: parallel, factorized, doped"):
        sf.sparse_ift.build("lenet_300_100", "wide", 0.5)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"parallel: expected a density in \(0, 1\], got 0"):
        sf.sparse_ift.parallel(mlp(), 0)
    with pytest.raises(ValueError, match="doped: expected a hidden layer of type Linear to replace, found none"):
        sf.sparse_ift.doped(nn.Linear(3, 3), 0.5)
