"""What the check of a row came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Whether the check holds, and what was measured, in words."""

    holds: bool
    measured: str


def points(values: Sequence[float]) -> str:
    """A mean with each seed's value: `+1.50 (+1.32, +1.68)`."""
    each = ", ".join(f"{value:+.2f}" for value in values)
    return f"{sum(values) / len(values):+.2f} ({each})"
