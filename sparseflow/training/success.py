"""Over seeds: how often a search ends in a ticket, and how sparse a network it may be expected to find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sparseflow.training.verdict import DENSE_MARGIN, VerdictValue, verdict


@dataclass(frozen=True)
class Success:
    """`verdicts`: each seed's own, by the rule for all. `densities`: see `matching_density`; None without round 0."""

    verdicts: dict[int, VerdictValue]
    densities: dict[int, float] | None

    @property
    def rate(self) -> float:
        """The fraction of seeds whose own verdict is that it is a ticket."""
        return sum(value == "ticket" for value in self.verdicts.values()) / len(self.verdicts)

    @property
    def expected_density(self) -> float | None:
        """The mean over seeds of the least density that matches the dense network."""
        return None if self.densities is None else sum(self.densities.values()) / len(self.densities)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "rate": self.rate, "expected_density": self.expected_density}


def success(seeds: Sequence[int], arms: Mapping[str, ArrayLike], trained: Sequence[Mapping[str, Any]]) -> Success:
    """`arms` as in `verdict`, a row a seed; `trained`: what is on record of the rounds of all seeds."""
    rows = {arm: np.asarray(scores) for arm, scores in arms.items()}
    own: dict[int, VerdictValue] = {
        seed: verdict({arm: scores[row : row + 1] for arm, scores in rows.items()}).value
        for row, seed in enumerate(seeds)
    }
    by_seed = {seed: [one for one in trained if one["seed"] == seed] for seed in seeds}
    if any(one["round"] == 0 for one in trained):
        return Success(own, {seed: matching_density(networks) for seed, networks in by_seed.items()})
    return Success(own, None)


def matching_density(trained: Sequence[Mapping[str, Any]]) -> float:
    """The least density of one seed's rounds whose test accuracy loses at most 0.3 points to round 0's: often luck.

    Where later rounds fail and an even later one matches, that one counts.
    """
    (dense,) = (one["test_accuracy"] for one in trained if one["round"] == 0)
    least = dense - DENSE_MARGIN / 100
    return float(min(one["density"] for one in trained if one["test_accuracy"] >= least))
