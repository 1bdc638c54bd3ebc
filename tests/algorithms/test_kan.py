"""Kolmogorov-Arnold networks: splines against scipy's, edges pruned whole, and a function that they find."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.interpolate import BSpline
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.kan import KANLinear, b_splines, features_of_an_edge, kan, kept_edges
from sparseflow.recipes import load_recipe
from sparseflow.runs import Run, check, run_seed


@pytest.mark.parametrize(("grid", "degree", "reach"), [(5, 3, 1.0), (1, 0, 2.0), (4, 2, 0.5), (3, 1, 1.0)])
def test_splines_are_those_of_scipy(grid: int, degree: int, reach: float) -> None:
    step = 2 * reach / grid
    knots = -reach + step * torch.arange(-degree, grid + degree + 1, dtype=torch.float64)
    x = torch.linspace(-reach, reach * (1 - 1e-9), 101, dtype=torch.float64)
    found = b_splines(x.unsqueeze(-1), knots, degree)
    assert found.shape == (101, grid + degree)
    expected = BSpline.design_matrix(x.numpy(), knots.numpy(), degree).toarray()
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(x), rtol=0, atol=1e-12)
    assert not b_splines(torch.tensor([[9 * reach]]).double(), knots, degree).any()


def by_the_formula(layer: KANLinear, x: Tensor) -> Tensor:
    """φ(x) = bias + base · SiLU(x) + spline(x), edge by edge."""
    outputs = layer.edges.weight.shape[0]
    weight = layer.edges.weight.detach().view(outputs, layer.inputs, layer.features).double().numpy()
    knots = layer.get_buffer("knots").double().numpy()
    y = torch.zeros(len(x), outputs, dtype=torch.float64)
    for o in range(outputs):
        for i in range(layer.inputs):
            bias, base, *coefficients = weight[o, i]
            spline = torch.from_numpy(BSpline(knots, coefficients, layer.degree)(x[:, i].numpy()))
            y[:, o] += bias + base * x[:, i] * x[:, i].sigmoid() + spline
    return y


def test_a_layer_is_its_formula() -> None:
    torch.manual_seed(0)
    layer = KANLinear(3, 4).double()
    with torch.no_grad():
        layer.edges.weight.normal_()
    x = torch.rand(20, 3, dtype=torch.float64) * 1.9 - 0.95
    torch.testing.assert_close(layer(x).detach(), by_the_formula(layer, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["dense", "dense-compact", "cpu"])
@pytest.mark.parametrize(("grid", "degree"), [(5, 3), (2, 1)])
def test_a_pruned_edge_is_gone_whole(backend: str, grid: int, degree: int) -> None:
    torch.manual_seed(0)
    model, features = kan([3, 4, 2], grid, degree), features_of_an_edge(grid, degree)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    masks = sf.prune(model, 0.5, pattern=sf.Block(1, features), criterion="random")
    edges = {name: kept_edges(mask, features) for name, mask in masks.items()}
    assert sum(int(kept.sum()) for kept in edges.values()) == 10
    x = torch.rand(7, 3) * 2 - 1
    layer = model[1]
    kept = edges["1.edges.weight"]
    sf.sparsify(model, masks, backend=backend)
    for i in range(3):
        moved = x.clone()
        moved[:, i] = -moved[:, i]
        reached = (layer(moved) != layer(x)).any(0)
        assert torch.equal(reached, kept[:, i])
    # Neither is a constant left of it.
    alone = kept.sum(1) == 0
    assert not layer(x)[:, alone].any()


def test_a_mask_that_leaves_the_base_of_an_edge() -> None:
    # The trap: the spline is pruned, and the rest goes on.
    mask = torch.ones(2, 3 * 10, dtype=torch.bool)
    mask[0, 2:10] = False
    with pytest.raises(ValueError, match="keeps parts of edges; prune with the pattern Block"):
        kept_edges(mask, 10)


def target(x: Tensor) -> Tensor:
    return torch.exp(torch.sin(math.pi * x[:, :1]) + x[:, 1:] ** 2)


def fit(model: nn.Module, steps: int = 150) -> float:
    """Trains on 500 points and returns the RMS error on 200 others; the target's own deviation is 1.4."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(700, 2, generator=generator) * 2 - 1
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x[:500]) - target(x[:500])).square().mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float((model(x[500:]) - target(x[500:])).square().mean().sqrt())


def test_half_of_the_edges_are_enough_for_a_function() -> None:
    torch.manual_seed(0)
    errors = []
    rounds = sf.rounds(kan([2, 5, 1]), 2, density=7 / 15, rewind="none", pattern=sf.Block(1, 10))
    for round in rounds:
        errors.append(fit(round.model))
        round.finish()
    assert sum(int(kept_edges(mask, 10).sum()) for mask in round.masks.values()) == 7
    assert errors[-1] <= 0.2, errors


def fitted_edge(layer: KANLinear, function: Callable[[Tensor], Tensor], low: float, high: float) -> Tensor:
    """The weights of an edge that comes nearest to a function on an interval, by least squares."""
    x = torch.linspace(low, high, 400, dtype=torch.float64).unsqueeze(1)
    splines = b_splines(x, layer.get_buffer("knots").double(), layer.degree)
    features = torch.cat([torch.ones_like(x), nn.functional.silu(x), splines], 1)
    return torch.linalg.lstsq(features, function(x), driver="gelsd").solution[:, 0].float()


def test_three_edges_are_that_function() -> None:
    model = kan([2, 5, 1], grid=10, reach=2.2)
    hidden, last = model[1], model[2]
    with torch.no_grad():
        for layer in (hidden, last):
            layer.edges.weight.normal_()
        hidden.edges.weight[3, :15] = fitted_edge(hidden, lambda x: torch.sin(math.pi * x), -1, 1)
        hidden.edges.weight[3, 15:] = fitted_edge(hidden, torch.square, -1, 1)
        last.edges.weight[0, 45:60] = fitted_edge(last, torch.exp, -1.1, 2.1)
    masks = {"1.edges.weight": torch.zeros(5, 30), "2.edges.weight": torch.zeros(1, 75)}
    masks["1.edges.weight"][3], masks["2.edges.weight"][0, 45:60] = 1, 1
    x = torch.rand(500, 2) * 2 - 1
    # Four edges of noise lead to the output as well, until they are pruned.
    assert (model(x) - target(x)).square().mean().sqrt() > 0.5
    sf.sparsify(model, {name: mask > 0 for name, mask in masks.items()}, backend="dense-compact")
    assert (model(x) - target(x)).square().mean().sqrt() < 0.05
    assert sum(parameter.numel() for parameter in model.parameters()) == 45


def test_its_recipe_finds_tickets_of_whole_edges(tmp_path: Path) -> None:
    settings = ["training.steps=4", "training.evaluate_every=2", "pruning.rounds=1", "controls.rounds=[]"]
    recipe = load_recipe("kan", [*settings, "backend=dense-compact"])
    check(recipe)
    run = Run(tmp_path, recipe)
    run_seed(run, 1, lambda event: None)
    masks = run.records(1).ticket(1).masks
    assert all(kept_edges(mask, 10).any() for mask in masks.values())
    assert masks.nnz == 10 * round(0.7 * (64 * 16 + 16 * 10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [3]}, "kan: expected two widths or more"),
        ({"widths": [3, 2], "grid": 0}, "KANLinear: expected inputs, outputs and grid ≥ 1"),
        ({"widths": [3, 2], "reach": 0.0}, "reach above 0, got"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sf.models.build("kan", options)
