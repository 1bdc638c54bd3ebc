"""Dynamic masks: masks that change while a network trains. Tensors in, masks out; who trains it says when.

Weights, gradients and masks are mappings from parameter name to tensor, in the parameters' own shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from sparseflow.masks import criteria
from sparseflow.masks.criteria import Scores
from sparseflow.masks.keep import drop_lowest
from sparseflow.masks.masks import Masks
from sparseflow.masks.select import prune_tensors

StaticAllocation = Literal["erk", "uniform"]


class Dynamic(Protocol):
    """A method that changes masks in training. What it does is a function of its arguments: it keeps no state."""

    @property
    def density(self) -> float:
        """What it is about: the density that it ends with or, where that is dense again, that it trains with before."""
        ...

    @property
    def uses_gradients(self) -> bool:
        """Whether `update` looks at the dense gradients of its step, of pruned weights too."""
        ...

    @property
    def replaces_step(self) -> bool:
        """Whether an update stands in the place of the optimizer's step, rather than after it."""
        ...

    @property
    def settled(self) -> int:
        """From how many steps done the network has the density that it ends with: only then is it a result."""
        ...

    def start(self, weights: Mapping[str, Tensor], seed: int) -> Masks:
        """The masks of the untrained network."""
        ...

    def due(self, step: int) -> bool:
        """Whether the masks change in the step of that number, the first one being 0."""
        ...

    def update(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | None,
        seed: int,
    ) -> Masks:
        """The new masks. A weight that they keep and `masks` did not starts at zero, as does its optimizer state."""
        ...


@dataclass(frozen=True)
class _Replacing:
    """What replaces weights at one density: random masks first, updates every `every` steps until step `until`."""

    density: float
    until: int
    every: int = 100
    drop: float = 0.3
    allocation: StaticAllocation = "erk"

    settled = 0

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_density_of(name, self.density)
        if self.until < 1 or self.every < 1:
            raise ValueError(
                f"{name}: expected until ≥ 1 and every ≥ 1 step, got until={self.until}, every={self.every}"
            )
        if not 0 <= self.drop <= 1:
            raise ValueError(f"{name}: expected drop, the fraction replaced, in [0, 1], got {self.drop}")

    def start(self, weights: Mapping[str, Tensor], seed: int) -> Masks:
        return random_masks(weights, self.density, self.allocation, seed)

    def due(self, step: int) -> bool:
        return 0 < step < self.until and step % self.every == 0


@dataclass(frozen=True)
class RigL(_Replacing):
    """RigL: drops the smallest weights, grows where the gradient is largest (Evci et al., 2020, arXiv:1911.11134).

    Every `every` steps until step `until`, of each layer with n kept weights, f · n are replaced, where
    f(t) = drop / 2 · (1 + cos(π t / until)) (§3): kept are the n − ⌊f n⌋ largest |w|, grown the ⌊f n⌋ largest |dL/dw|
    among all others, those that were just dropped included. An update takes the place of the optimizer's step, as in
    the authors' code. Departure: equal scores go by index; the code adds noise to break ties.
    """

    uses_gradients = True
    replaces_step = True

    def update(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | None,
        seed: int,
    ) -> Masks:
        assert gradients is not None
        fraction = cosine(self.drop, step, self.until)
        return replace_smallest(weights, masks, Scores({n: gradients[n] for n in masks}, absolute=True), fraction)


@dataclass(frozen=True)
class SET(_Replacing):
    """SET: drops the smallest weights, grows others at random (Mocanu et al., 2018, arXiv:1707.04780).

    After every `every`-th step, up to step `until`, the fraction `drop` of each layer's kept weights is replaced.
    Departure: the paper drops the smallest positive and the largest negative weights separately; here |w| decides, as
    in most later work.
    """

    uses_gradients = False
    replaces_step = False

    def update(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | None,
        seed: int,
    ) -> Masks:
        # Another draw at each update, the same on every rank and after a resume.
        drawn = criteria.random({name: weights[name] for name in masks}, seed=hash_of(seed, step))
        return replace_smallest(weights, masks, drawn, self.drop)


def replace_smallest(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], growth: Scores, fraction: float
) -> Masks:
    """Of each layer's n kept weights the ⌊fraction · n⌋ smallest |w| leave, and as many of highest growth score enter.

    What has just left may enter again, and then keeps its weight. Every layer keeps its count.
    """
    kept = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
    moved = {name: int(fraction * count) for name, count in kept.items()}
    magnitudes = Scores({name: weights[name] for name in masks}, absolute=True)
    stay = drop_lowest(magnitudes, masks, moved)
    # Of all but the n − m that stay, m enter.
    left_out = {name: mask.numel() - kept[name] for name, mask in masks.items()}
    enter = drop_lowest(growth, {name: ~mask for name, mask in stay.items()}, left_out)
    return Masks({name: stay[name] | enter[name] for name in masks})


def random_masks(weights: Mapping[str, Tensor], density: float, allocation: StaticAllocation, seed: int) -> Masks:
    """Random masks of a density: the same in each layer ("uniform"), or Erdős-Rényi-Kernel ("erk")."""
    return prune_tensors(weights, density=density, criterion="random", allocation=allocation, seed=seed)


def cosine(initial: float, step: int, until: int) -> float:
    """initial / 2 · (1 + cos(π step / until))."""
    return initial / 2 * (1 + math.cos(math.pi * step / until))


def hash_of(seed: int, step: int) -> int:
    """A seed of its own for each step."""
    return seed * 1_000_003 + step


def check_density_of(method: str, density: float) -> None:
    """`ValueError` that names the method, unless its density is in (0, 1]."""
    if not 0 < density <= 1:
        raise ValueError(f"{method}: expected a density in (0, 1], got {density}")
