"""Schedules: the density to have reached at a given progress, over rounds or steps."""

from collections.abc import Callable
from dataclasses import dataclass

from sparseflow.masks.arguments import choose

Schedule = Callable[[float], float]
"""From progress in [0, 1] (the fraction of rounds or steps done) to the density to have by then."""


@dataclass(frozen=True)
class Constant:
    """Prunes the same fraction of the survivors at every equal step: density d0 (d1/d0)^p at progress p.

    A rate of 0.2 over 10 rounds is `Constant(0.8**10)` called with round/10.
    """

    final_density: float
    initial_density: float = 1.0

    def __post_init__(self) -> None:
        _check_densities(self.final_density, self.initial_density)

    def __call__(self, progress: float) -> float:
        """Returns the density at `progress`; ValueError outside of [0, 1]."""
        _check_progress(progress)
        ratio: float = (self.final_density / self.initial_density) ** progress
        return self.initial_density * ratio


@dataclass(frozen=True)
class Cubic:
    """Prunes fast first and slowly later: Zhu & Gupta, 2017 (arXiv:1710.01878), eq. 1.

    There s_t = s_f + (s_i - s_f)(1 - (t - t0)/(n Δt))^3 over the sparsity s = 1 - density, with progress
    (t - t0)/(n Δt).
    """

    final_density: float
    initial_density: float = 1.0

    def __post_init__(self) -> None:
        _check_densities(self.final_density, self.initial_density)

    def __call__(self, progress: float) -> float:
        """Returns the density at `progress`; ValueError outside of [0, 1]."""
        _check_progress(progress)
        remaining: float = (1.0 - progress) ** 3
        return self.final_density + (self.initial_density - self.final_density) * remaining


def get(name: str) -> type[Constant] | type[Cubic]:
    """Returns the schedule class of that name."""
    available: dict[str, type[Constant] | type[Cubic]] = {"constant": Constant, "cubic": Cubic}
    return choose("schedule", name, available)


def _check_densities(final: float, initial: float) -> None:
    if not 0.0 < final <= initial <= 1.0:
        raise ValueError(
            "schedule: expected 0 < final_density <= initial_density <= 1, "
            f"got final_density={final}, initial_density={initial}"
        )


def _check_progress(progress: float) -> None:
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress: expected a fraction in [0, 1], got {progress}; pass round / rounds")
