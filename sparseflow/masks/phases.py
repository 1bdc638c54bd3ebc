"""Masks that follow a plan of steps: gradual pruning, alternating phases, sparse before dense, and none of that.

Each is a `dynamic.Dynamic` that updates after the optimizer's step and looks at weights alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparseflow.masks.dynamic import StaticAllocation, check_density_of, random_masks
from sparseflow.masks.masks import Masks
from sparseflow.masks.schedules import Cubic
from sparseflow.masks.select import prune_tensors


@dataclass(frozen=True)
class Static:
    """A random mask that stays: Erdős-Rényi-Kernel or uniform densities, before the first step."""

    density: float
    allocation: StaticAllocation = "erk"

    uses_gradients = False
    replaces_step = False
    settled = 0

    def start(self, weights: Mapping[str, Tensor], seed: int) -> Masks:
        return random_masks(weights, self.density, self.allocation, seed)

    def due(self, step: int) -> bool:
        return False

    def update(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | None,
        seed: int,
    ) -> Masks:
        return Masks(masks)


@dataclass(frozen=True)
class GMP:
    """Gradual magnitude pruning (Zhu & Gupta, 2017, arXiv:1710.01878): dense at first, pruned every `every` steps.

    After step t the density is that of eq. 1, s_t = s_f + (s_i − s_f)(1 − (t − begin) / (until − begin))³ over the
    sparsity s = 1 − density; it is exactly `density` at `until`. Departure: the paper recomputes masks from all
    weights, so that one which was pruned may return; here it does not exist any more, and never does.
    """

    density: float
    until: int
    begin: int = 0
    every: int = 100
    initial_density: float = 1.0
    allocation: Literal["global", "uniform", "erk"] = "global"
    # As in `prune_tensors`: a layer that would lose its last weights keeps so many.
    floor: int | float | None = 1

    uses_gradients = False
    replaces_step = False

    def __post_init__(self) -> None:
        try:
            Cubic(self.density, self.initial_density)
        except ValueError:
            raise ValueError(
                "GMP: expected 0 < density ≤ initial_density ≤ 1, for it prunes and never grows; got "
                f"density={self.density}, initial_density={self.initial_density}"
            ) from None
        if not 0 <= self.begin < self.until or self.every < 1:
            raise ValueError(
                f"GMP: expected 0 ≤ begin < until and every ≥ 1 step, got begin={self.begin}, until={self.until}, "
                f"every={self.every}"
            )

    @property
    def settled(self) -> int:
        return self.until + 1

    def start(self, weights: Mapping[str, Tensor], seed: int) -> Masks:
        return prune_tensors(weights, density=self.initial_density, allocation=self.allocation, floor=self.floor)

    def due(self, step: int) -> bool:
        return step == self.until or (self.begin <= step < self.until and (step - self.begin) % self.every == 0)

    def update(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | None,
        seed: int,
    ) -> Masks:
        progress = (step - self.begin) / (self.until - self.begin)
        density = Cubic(self.density, self.initial_density)(progress)
        return prune_tensors(weights, masks, density=density, allocation=self.allocation, floor=self.floor)


@dataclass(frozen=True)
class ACDC:
    """AC/DC: alternating compressed and decompressed phases (Peste et al., 2021, arXiv:2106.12379).

    Dense for `warm_up` steps, then in turn compressed and decompressed for `phase` steps each, and compressed from step
    `final` to the end. Each compression keeps the largest |w|; when weights come back they start at zero, and so does
    their momentum. It ends sparse.
    """

    density: float
    warm_up: int
    phase: int
    final: int
    allocation: Literal["global", "uniform", "erk"] = "global"
    # As in `prune_tensors`: a layer that would lose its last weights keeps so many.
    floor: int | float | None = 1

    uses_gradients = False
    replaces_step = False

    def __post_init__(self) -> None:
        check_density_of("AC/DC", self.density)
        if not 0 < self.warm_up <= self.final or self.phase < 1:
            raise ValueError(
                f"AC/DC: expected 0 < warm_up ≤ final and phase ≥ 1 step, got warm_up={self.warm_up}, "
                f"final={self.final}, phase={self.phase}"
            )

    @property
    def settled(self) -> int:
        return self.final

    def start(self, weights: Mapping[str, Tensor], seed: int) -> Masks:
        return Masks.ones({name: weight.shape for name, weight in weights.items()})

    def due(self, step: int) -> bool:
        # Step numbers count from 0: after step s, s + 1 steps are done.
        return self.compressed(step + 1) != self.compressed(step)

    def update(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | None,
        seed: int,
    ) -> Masks:
        if self.compressed(step + 1):
            return prune_tensors(weights, density=self.density, allocation=self.allocation, floor=self.floor)
        return _everything(masks)

    def compressed(self, step: int) -> bool:
        """Whether the step of that number trains the sparse network."""
        if step < self.warm_up:
            return False
        return step >= self.final or (step - self.warm_up) // self.phase % 2 == 0


@dataclass(frozen=True)
class SPDF:
    """Sparse pre-training, then dense fine-tuning (Thangarasa et al., 2023, arXiv:2303.10464).

    A random mask of equal density in each layer stays for `sparse_steps` steps; then all weights train, those that were
    pruned from zero on. It ends dense, which is meant.
    """

    density: float
    sparse_steps: int

    uses_gradients = False
    replaces_step = False

    def __post_init__(self) -> None:
        check_density_of("SPDF", self.density)
        if self.sparse_steps < 1:
            raise ValueError(f"SPDF: expected sparse_steps ≥ 1, got {self.sparse_steps}")

    @property
    def settled(self) -> int:
        return self.sparse_steps

    def start(self, weights: Mapping[str, Tensor], seed: int) -> Masks:
        return random_masks(weights, self.density, "uniform", seed)

    def due(self, step: int) -> bool:
        return step + 1 == self.sparse_steps

    def update(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | None,
        seed: int,
    ) -> Masks:
        return _everything(masks)


def _everything(masks: Mapping[str, Tensor]) -> Masks:
    return Masks({name: torch.ones_like(mask) for name, mask in masks.items()})
