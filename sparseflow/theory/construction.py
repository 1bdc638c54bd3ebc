"""Training by pruning, as the proofs do it: a random network becomes a given one, and no weight of it is trained.

Natale et al., 2024 (arXiv:2410.14754), theorem 3, after Pensia et al., 2020 (arXiv:2006.07990). Each layer W of the
target is made of two random ones, M₁ and M₂, with 2 n units for each input between them. A unit keeps one weight u, to
its own input x: it gives |u| · max(0, x) where u > 0, |u| · max(0, −x) where u < 0. Of either kind each output keeps k
units by their weights v, such that Σ v |u| is as near as can be to w, or to −w: then the outputs add up to W x.

Shapes: O outputs, I inputs, C choices of k units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from torch import Tensor, nn

from sparseflow.files import Ticket
from sparseflow.masks.masks import Masks

# Choices that are tried out for each weight, at most: they are all held at once.
_MOST_CHOICES = 200_000


@dataclass(frozen=True)
class Match:
    """A random network, the ticket that makes it the target, and how far from its own a weight so made is at most."""

    model: nn.Sequential
    ticket: Ticket
    worst: float


def prune_to_match(target: Sequence[Tensor], samples: int, subset: int, error: float, seed: int = 0) -> Match:
    """Prunes a random network, uniform in [−1, 1], until it computes W_l relu(… relu(W_1 x)) for the matrices given.

    `samples` is n, `subset` k. The model comes with the ticket's weights in it. Departure: the theorem has n units of
    either sign for each input; here the signs of its 2 n units are as they were drawn, so that each has about n.
    ValueError that names the layer where a weight cannot be met within `error`, or would take too many tries.
    """
    _check(target, samples, subset)
    generator = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    masks, worst = dict[str, Tensor](), 0.0
    for number, weight in enumerate(target):
        outputs, inputs = weight.shape
        pair = [_random(inputs, 2 * inputs * samples, generator), _random(2 * inputs * samples, outputs, generator)]
        names = [f"{len(modules)}.weight", f"{len(modules) + 2}.weight"]
        first, second, distance = _match(weight.double(), pair[0].weight, pair[1].weight, subset, number)
        if distance > error:
            raise ValueError(
                f"prune_to_match: layer {number} has a weight that no {subset} of {samples} numbers meet within "
                f"{error:g}, the nearest being {distance:.3g} away; raise samples, or the error"
            )
        masks |= dict(zip(names, (first, second)))
        worst = max(worst, distance)
        modules += [pair[0], nn.ReLU(), pair[1], nn.ReLU()]
    model = nn.Sequential(*modules[:-1])
    state = {name: torch.where(masks[name], one.detach(), 0.0) for name, one in model.named_parameters()}
    model.load_state_dict(state)
    about: dict[str, object] = {"algorithm": "prune_to_match", "round": 1, "seed": seed, "worst": worst}
    return Match(model, Ticket(Masks(masks), state, None, about), worst)


def _match(weight: Tensor, first: Tensor, second: Tensor, subset: int, number: int) -> tuple[Tensor, Tensor, float]:
    """The masks of the two random layers, and the largest distance of a weight made to the one that was wanted."""
    masks = torch.zeros_like(first, dtype=torch.bool), torch.zeros_like(second, dtype=torch.bool)
    worst, rows = 0.0, torch.arange(len(weight)).unsqueeze(1)
    for one_input, sign, units in _units(first.detach(), weight.shape[1]):
        if len(units) < subset:
            raise ValueError(f"prune_to_match: layer {number} drew {len(units)} units of one sign, k={subset}; raise n")
        masks[0][units, one_input] = True
        chosen_CK = torch.tensor(list(combinations(range(len(units)), subset)))
        made_OZ = second.detach()[:, units].double() * first.detach()[units, one_input].abs().double()
        distance_OC = (made_OZ[:, chosen_CK].sum(-1) - sign * weight[:, one_input].unsqueeze(1)).abs()
        nearest = distance_OC.min(1)
        masks[1][rows, units[chosen_CK[nearest.indices]]] = True
        worst = max(worst, float(nearest.values.max()))
    return *masks, worst


def _units(first: Tensor, inputs: int) -> Iterator[tuple[int, int, Tensor]]:
    """Each input with either sign, and the units between the layers that pass that half of it."""
    each = len(first) // inputs
    for one_input in range(inputs):
        own = torch.arange(one_input * each, (one_input + 1) * each)
        for sign in (1, -1):
            yield one_input, sign, own[first[own, one_input] * sign > 0]


def _random(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    with torch.no_grad():
        layer.weight.uniform_(-1, 1, generator=generator)
    return layer.requires_grad_(False)


def _check(target: Sequence[Tensor], samples: int, subset: int) -> None:
    if not target or any(weight.dim() != 2 for weight in target):
        raise ValueError("prune_to_match: expected one matrix or more, each (outputs, inputs)")
    for number, (before, after) in enumerate(pairwise(target)):
        if before.shape[0] != after.shape[1]:
            raise ValueError(
                f"prune_to_match: layer {number + 1} takes {after.shape[1]} inputs, "
                f"the one before gives {before.shape[0]}"
            )
    if not 1 <= subset <= samples:
        raise ValueError(f"prune_to_match: expected 1 ≤ subset ≤ samples, got subset={subset}, samples={samples}")
    # Half as many units again as are to be expected of one sign.
    choices = math.comb(round(1.5 * samples), subset)
    if choices > _MOST_CHOICES:
        raise ValueError(
            f"prune_to_match: {subset} of about {samples} numbers are {choices:,} choices for each weight, and at most "
            f"{_MOST_CHOICES:,} are tried out; lower samples or subset"
        )
