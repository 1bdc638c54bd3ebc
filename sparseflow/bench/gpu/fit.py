"""The efficiencies of a chip's cost model, fitted to what was measured, and how far off they are elsewhere.

    seconds = limit / eta        least squares of log(seconds): eta = exp(mean(log(limit / seconds)))

`limit` is the slowest of L2, HBM and arithmetic. The launches that the model adds are left out: a replayed graph has
next to none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from sparseflow.hardware.backends.triton_cost import Call, ChipModel, eta_name


@dataclass(frozen=True)
class Sample:
    """Measured seconds of one call, taken at a density."""

    call: Call
    density: float
    seconds: float


@dataclass(frozen=True)
class Fit:
    """One fitted efficiency.

    `held_out` is the error at densities that the fit has not seen, each left out once: the typical factor, e to the
    RMS of the logarithm, by which time is mistaken; None where there is only one density. 1 is exact.
    """

    name: str
    eta: float
    samples: int
    held_out: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        error = "not known: one density" if self.held_out is None else f"a factor of {self.held_out:.2f}"
        return f"{self.name:<24} {self.eta:6.3f}   from {self.samples} points; held-out error {error}"


def fit(chip: ChipModel, samples: Iterable[Sample]) -> list[Fit]:
    """A fit for each family and dtype that was measured, in order of first appearance."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(eta_name(sample.call.family, sample.call.dtype), []).append(sample)
    return [
        Fit(name, math.exp(_log_eta(chip, found)), len(found), _held_out(chip, found)) for name, found in groups.items()
    ]


def fitted(chip: ChipModel, fits: Iterable[Fit]) -> ChipModel:
    """The chip with these efficiencies."""
    return chip.fitted({one.name: one.eta for one in fits})


def _log_eta(chip: ChipModel, samples: Sequence[Sample]) -> float:
    return fmean(_log(chip, sample) for sample in samples)


def _log(chip: ChipModel, sample: Sample) -> float:
    return math.log(max(chip.limits(sample.call).values()) / sample.seconds)


def _held_out(chip: ChipModel, samples: Sequence[Sample]) -> float | None:
    densities = {sample.density for sample in samples}
    if len(densities) < 2:
        return None
    errors = []
    for density in densities:
        seen = _log_eta(chip, [sample for sample in samples if sample.density != density])
        errors += [_log(chip, sample) - seen for sample in samples if sample.density == density]
    return math.exp(math.sqrt(fmean(error**2 for error in errors)))
