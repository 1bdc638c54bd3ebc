"""Masks that are learned while the weights stay as they were drawn: a score for each weight, trained by gradients.

Weights, scores and masks are mappings from parameter name to tensor, in the parameters' own shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sparseflow.masks.criteria import Scores, parameter_generator
from sparseflow.masks.keep import drop_lowest
from sparseflow.masks.masks import Masks
from sparseflow.masks.select import prune_tensors

FrozenWeights = Literal["built", "signed_constant", "scaled_signed_constant"]


class Supermasks(Protocol):
    """A method that learns masks over frozen weights. It keeps no state: the scores are all there is."""

    def frozen(self, weights: Mapping[str, Tensor], fan_in: Mapping[str, int]) -> dict[str, Tensor]:
        """The weights that the network has, and keeps, from those that its model was built with."""
        ...

    def scores(self, weights: Mapping[str, Tensor], fan_in: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        """The scores to begin with."""
        ...

    def masks(self, scores: Mapping[str, Tensor]) -> Masks:
        """What the scores come to: the masks of evaluations and of the ticket."""
        ...

    def weights(self, frozen: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the network computes with under such masks, zero where they prune."""
        ...

    def training_weights(self, frozen: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a training step computes with, differentiable with respect to the scores."""
        ...


@dataclass(frozen=True)
class EdgePopup:
    """edge-popup: the network within a random one, found by its scores (Ramanujan et al., 2020, arXiv:1911.13299).

    The effective weight is W · h(|s|), where h is 1 for the highest |s| and 0 elsewhere. Of a layer's n weights
    ⌊(1 − density) · n⌋ are zero; with `allocation="global"` |s| is ranked over all layers together, which is no part
    of the paper. Backward takes h as the identity: ds = dL/dw_eff · W · sign(s). The factor sign(s) is that of |s|,
    which the authors' code ranks; the paper's text ranks s. `frozen_weights`: "built", those of the model;
    "signed_constant", ±√(2 / fan_in) with their signs; "scaled_signed_constant", that times √(1 / density).
    """

    density: float
    allocation: Literal["layerwise", "global"] = "layerwise"
    frozen_weights: FrozenWeights = "signed_constant"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"EdgePopup: expected a density in (0, 1], got {self.density}")
        _check_choice("EdgePopup", "allocation", self.allocation, ("layerwise", "global"))
        _check_frozen("EdgePopup", self.frozen_weights)

    def frozen(self, weights: Mapping[str, Tensor], fan_in: Mapping[str, int]) -> dict[str, Tensor]:
        scale = math.sqrt(1 / self.density) if self.frozen_weights == "scaled_signed_constant" else 1.0
        return freeze(weights, fan_in, self.frozen_weights, scale)

    def scores(self, weights: Mapping[str, Tensor], fan_in: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        """Uniform in ±1/√fan_in: Kaiming's bound for a = √5."""
        return {name: _uniform(name, weight, 1 / math.sqrt(fan_in[name]), seed) for name, weight in weights.items()}

    def masks(self, scores: Mapping[str, Tensor]) -> Masks:
        found = {name: score.detach() for name, score in scores.items()}
        if self.allocation == "global":
            return prune_tensors(found, density=self.density, allocation="global", floor=0)
        everything = Masks.ones({name: score.shape for name, score in found.items()})
        everything = everything.to(next(iter(found.values())).device)
        # As the authors' code counts.
        drops = {name: int((1 - self.density) * score.numel()) for name, score in found.items()}
        return Masks(drop_lowest(Scores(found, absolute=True), everything, drops))

    def weights(self, frozen: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.where(mask, frozen[name], 0.0) for name, mask in masks.items()}

    def training_weights(self, frozen: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        masks = self.masks(scores)
        return {name: frozen[name] * _straight_through(score.abs(), masks[name]) for name, score in scores.items()}


@dataclass(frozen=True)
class Supermask:
    """A supermask: m ~ Bernoulli(σ(s)) over frozen weights (Zhou et al., 2019, arXiv:1905.01067, §5).

    Each training step draws new masks; the gradient passes through the drawing as if m were σ(s). With `rescale`
    ("dynamic weight rescaling") a layer's weights are multiplied by its number of weights over its number of ones, of
    the very mask that is used. Departures: evaluations and the ticket take the likeliest mask, s > 0, in place of a
    drawn one, so that what is measured is what is kept; s begins as N(0, 0.01²), p ≈ ½.
    """

    rescale: bool = True
    frozen_weights: FrozenWeights = "signed_constant"

    def __post_init__(self) -> None:
        _check_frozen("Supermask", self.frozen_weights)

    def frozen(self, weights: Mapping[str, Tensor], fan_in: Mapping[str, int]) -> dict[str, Tensor]:
        # How dense the masks will be is not known; `rescale` makes up for it.
        return freeze(weights, fan_in, self.frozen_weights, 1.0)

    def scores(self, weights: Mapping[str, Tensor], fan_in: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        return {name: _normal(name, weight, 0.01, seed) for name, weight in weights.items()}

    def masks(self, scores: Mapping[str, Tensor]) -> Masks:
        return Masks({name: score.detach() > 0 for name, score in scores.items()})

    def weights(self, frozen: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.where(mask, self._scaled(frozen[name], mask), 0.0) for name, mask in masks.items()}

    def training_weights(self, frozen: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, score in scores.items():
            chance = score.sigmoid()
            drawn = torch.bernoulli(chance.detach())
            found[name] = self._scaled(frozen[name], drawn) * _straight_through(chance, drawn)
        return found

    def _scaled(self, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask.numel() / mask.count_nonzero().clamp_min(1) if self.rescale else weight


def freeze(
    weights: Mapping[str, Tensor], fan_in: Mapping[str, int], how: FrozenWeights, scale: float
) -> dict[str, Tensor]:
    """Copies of the weights, or of their signs times scale · √(2 / fan_in); a zero counts as positive."""
    if how == "built":
        return {name: weight.detach().clone() for name, weight in weights.items()}
    found = {}
    for name, weight in weights.items():
        constant = torch.full_like(weight.detach(), scale * math.sqrt(2 / fan_in[name]))
        found[name] = torch.where(weight.detach() < 0, -constant, constant)
    return found


class _StraightThrough(torch.autograd.Function):
    """The mask, exactly; in backward as if it were what it was made from."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, mask: Tensor) -> Tensor:
        return mask.to(soft.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


def _straight_through(soft: Tensor, mask: Tensor) -> Tensor:
    passed: Tensor = _StraightThrough.apply(soft, mask)  # type: ignore[no-untyped-call]
    return passed


def _uniform(name: str, like: Tensor, bound: float, seed: int) -> Tensor:
    # On the CPU, so that every device gets the same.
    drawn = torch.rand(like.shape, generator=parameter_generator(seed, name))
    return ((2 * drawn - 1) * bound).to(like)


def _normal(name: str, like: Tensor, std: float, seed: int) -> Tensor:
    return (torch.randn(like.shape, generator=parameter_generator(seed, name)) * std).to(like)


def _check_frozen(method: str, chosen: str) -> None:
    allowed = ("built", "signed_constant") + (("scaled_signed_constant",) if method == "EdgePopup" else ())
    _check_choice(method, "frozen_weights", chosen, allowed)


def _check_choice(method: str, option: str, chosen: str, allowed: tuple[str, ...]) -> None:
    if chosen not in allowed:
        raise ValueError(f"{method}: expected {option} to be one of {', '.join(allowed)}, got {chosen!r}")
