"""Learning-rate schedules: the factor on the base rate as a pure function of the step.

No state: rewinding to step k is calling them with k again, and nothing has to be saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]


def constant() -> Schedule:
    """Always 1."""
    return lambda step: 1.0


def cosine(steps: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Linear from 0 over `warmup` steps, then half a cosine to `final` (Loshchilov & Hutter, arXiv:1608.03983)."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def multistep(milestones: Sequence[int], drop: float = 0.1, warmup: int = 0) -> Schedule:
    """Linear from 0 over `warmup` steps, then multiplied by `drop` at each milestone (a step)."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return float(drop ** sum(step >= milestone for milestone in milestones))

    return factor
