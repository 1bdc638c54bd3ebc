"""Rows about pruning at initialisation: exact properties of the scores, and what shuffling the mask does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sparseflow import models
from sparseflow.hardware.model import dense_state, dense_weights
from sparseflow.masks.allocation import erk_densities
from sparseflow.masks.criteria import Criterion
from sparseflow.masks.dynamic import random_masks
from sparseflow.masks.masks import Masks
from sparseflow.masks.select import prune_tensors, shuffle_masks
from sparseflow.reproduction.outcome import Outcome, points
from sparseflow.reproduction.searches import LENET
from sparseflow.reproduction.tickets import lenet_trainer, train_masked
from sparseflow.training.evaluation import cross_entropy
from sparseflow.training.pruning import prune
from sparseflow.training.sensitivity import grasp, snip
from sparseflow.training.synflow import synflow

ERK = {
    0.10: (0.07957, 0.23019, 1.0),
    0.05: (0.03848, 0.11133, 0.91851),
    0.02: (0.01539, 0.04453, 0.36740),
    0.01: (0.00770, 0.02227, 0.18370),
}
# Steps of the rows that train.
STEPS = 4_000
_IMAGE = torch.zeros(1, 784)


def snip_differences(seeds: Sequence[int]) -> Outcome:
    """Row 10a: |∂L/∂w · w| is what the loss does when the weight shrinks."""
    worst = max(
        _worst(seed, _loss, lambda model, data: snip(model, [data], cross_entropy), signed=False) for seed in seeds
    )
    return Outcome(worst <= 1e-5, f"{worst:.1e} at worst")


def grasp_differences(seeds: Sequence[int]) -> Outcome:
    """Row 11: −w · (Hg) is what half the squared gradient norm does when the weight shrinks; the highest go."""
    worst = max(
        _worst(seed, _half_norm, lambda model, data: grasp(model, [data], cross_entropy, 1.0), signed=True)
        for seed in seeds
    )
    return Outcome(worst <= 1e-5, f"{worst:.1e} at worst, with the sign")


def synflow_conserves(seeds: Sequence[int]) -> Outcome:
    """Row 12: layers' scores add up to R; a hundred prunings keep every layer alive where a single one cuts."""
    worst, alive, collapses = 0.0, True, True
    for seed in seeds:
        model = _lenet(seed)
        scores = synflow(model, _IMAGE)(dense_weights(model), 0).tensors
        flow = torch.ones(784, dtype=torch.float64)
        for weight in dense_weights(model).values():
            flow = weight.double().abs() @ flow
        worst = max(worst, *(abs(float(one.sum() / flow.sum()) - 1) for one in scores.values()))
        for exponent in (2.0, 4.25):
            masks = prune(model, 10**-exponent, criterion="synflow", data=[(_IMAGE, torch.zeros(1))], floor=0)
            alive = alive and all(masks.kept.values()) and _paths(masks) > 0
        once = prune_tensors(dense_weights(model), density=1e-2, criterion=synflow(model, _IMAGE), floor=0)
        collapses = collapses and _paths(once) == 0
    said = f"{worst:.1e}; 100 prunings {'connected' if alive else 'CUT'}, one {'cut' if collapses else 'CONNECTED'}"
    return Outcome(worst <= 1e-12 and alive and collapses, said)


def erk(seeds: Sequence[int]) -> Outcome:
    """Row 13: densities of LeNet-300-100 under ERK, and their mean."""
    sizes = [shape[0] * shape[1] for shape in LENET.values()]
    worst, table = 0.0, True
    for density, expected in ERK.items():
        found = list(erk_densities(LENET, density).values())
        table = table and all(abs(a - b) < 1e-5 for a, b in zip(found, expected))
        worst = max(worst, abs(sum(a * n for a, n in zip(found, sizes)) / sum(sizes) - density))
    return Outcome(table and worst <= 1e-9, f"table {'equal' if table else 'DIFFERS'}; mean off by {worst:.0e}")


def shuffled(seed: int) -> dict[str, float]:
    """By criterion, how much better its mask is than the same one shuffled within its layers."""
    gaps = {}
    for name, density in (("SNIP", 0.1), ("SynFlow", 0.05)):
        masks, theta_0 = _pruned(seed, name.lower(), density)
        gaps[name] = _accuracy(seed, masks, theta_0) - _accuracy(seed, shuffle_masks(masks, seed), theta_0)
    return gaps


def shuffling(found: Sequence[Mapping[str, float]]) -> Outcome:
    """Row 9: masks found at initialisation are no better than the same ones shuffled within their layers."""
    gaps = {name: [one[name] for one in found] for name in found[0]}
    means = {name: sum(each) / len(each) for name, each in gaps.items()}
    said = "; ".join(f"{name} {points(each)}" for name, each in gaps.items())
    return Outcome(all(abs(mean) <= 0.7 for mean in means.values()), f"{said} points, original − shuffled")


def over_random(seed: int) -> float:
    """How much better SNIP's mask is than a random one of uniform density, at 5 % of the weights."""
    masks, theta_0 = _pruned(seed, "snip", 0.05)
    random = random_masks({name: theta_0[name] for name in masks}, 0.05, "uniform", seed)
    return _accuracy(seed, masks, theta_0) - _accuracy(seed, random, theta_0)


def snip_against_random(gaps: Sequence[float]) -> Outcome:
    """Row 10b: at 5 % of the weights SNIP beats a random mask of uniform density."""
    return Outcome(min(gaps) > 0, f"{points(gaps)} points")


def _pruned(seed: int, criterion: str, density: float) -> tuple[Masks, dict[str, Tensor]]:
    trainer = lenet_trainer(seed, STEPS)
    # Ten batches of 60: a fair look at every class.
    masks = prune(
        trainer.model, density, criterion=criterion, data=list(trainer.batches(10)), loss=cross_entropy, floor=1
    )
    return masks, dense_state(trainer.model)


def _accuracy(seed: int, masks: Masks, theta_0: dict[str, Tensor]) -> float:
    """In points."""
    return 100 * train_masked(lenet_trainer(seed, STEPS), masks, theta_0).test.accuracy


def _lenet(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return models.lenet_300_100()


def _paths(masks: Masks) -> float:
    count = torch.ones(784, dtype=torch.float64)
    for mask in masks.values():
        count = mask.double() @ count
    return float(count.sum())


_Data = tuple[Tensor, Tensor]


def _worst(
    seed: int,
    measure: Callable[[nn.Module, _Data], Tensor],
    score: Callable[[nn.Module, _Data], Criterion],
    signed: bool,
) -> float:
    """The largest relative distance of a score from the slope that central differences find."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    data = torch.randn(30, 6, dtype=torch.float64), torch.arange(30) % 3
    scores = score(model, data)(dense_weights(model), 0).tensors
    worst = 0.0
    for name, place in (("0.weight", (0, 0)), ("0.weight", (3, 4)), ("2.weight", (1, 2)), ("2.weight", (2, 7))):
        slope = _slope(model.get_parameter(name), place, lambda: float(measure(model, data)))
        # The measure goes by `slope` when the weight shrinks: what raises the gradient norm by its going is pruned.
        expected = -slope if signed else abs(slope)
        # SNIP gives the product itself, and says that its absolute value counts.
        got = float(scores[name][place]) if signed else abs(float(scores[name][place]))
        worst = max(worst, abs(got - expected) / abs(slope))
    return worst


def _slope(weight: nn.Parameter, place: tuple[int, int], measure: Callable[[], float]) -> float:
    before, found = weight.data[place].item(), []
    for epsilon in (1e-5, -1e-5):
        weight.data[place] = before * (1 - epsilon)
        found.append(measure())
    weight.data[place] = before
    return (found[0] - found[1]) / 2e-5


def _loss(model: nn.Module, data: _Data) -> Tensor:
    return cross_entropy(model(data[0]), data[1]).detach()


def _half_norm(model: nn.Module, data: _Data) -> Tensor:
    weights = [model.get_parameter(name) for name in dense_weights(model)]
    gradients = torch.autograd.grad(cross_entropy(model(data[0]), data[1]), weights)
    total = torch.zeros((), dtype=torch.float64)
    for gradient in gradients:
        total = total + gradient.pow(2).sum() / 2
    return total
