"""The random subset sum problem, tried out: how often numbers drawn at random have a subset that adds up.

Shapes: n numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class SuccessRate:
    """How many of the trials succeeded, as a fraction; `k` is None where subsets of every size count."""

    n: int
    k: int | None
    error: float
    trials: int
    rate: float

    @property
    def deviation(self) -> float:
        """The standard deviation of `rate`, as if it were the probability."""
        return math.sqrt(self.rate * (1 - self.rate) / self.trials)


def success_rate(n: int, k: int, error: float, trials: int = 200, seed: int = 0) -> SuccessRate:
    """How often k of n numbers, uniform in [−1, 1], add up within `error` to one z, uniform in [−√k, √k]."""
    _check(n, k, error, trials)
    generator = np.random.default_rng(seed)
    successes = 0
    for _ in range(trials):
        values, z = generator.uniform(-1, 1, n), generator.uniform(-math.sqrt(k), math.sqrt(k))
        successes += meet_in_the_middle(values, z, k) < error
    return SuccessRate(n, k, error, trials, successes / trials)


def covering_rate(n: int, error: float, trials: int = 200, seed: int = 0) -> SuccessRate:
    """How often the subsets of n numbers, uniform in [−1, 1], add up within `error` to every z in [−1, 1].

    The random subset sum problem without a size, as Pensia et al., 2020 (arXiv:2006.07990) use it. 2ⁿ sums a trial.
    """
    _check(n, 1, error, trials)
    if n > 24:
        raise ValueError(f"covering_rate: expected n ≤ 24, for 2ⁿ sums are made, got {n}")
    generator = np.random.default_rng(seed)
    successes = sum(_covers(_all_sums(generator.uniform(-1, 1, n)), error) for _ in range(trials))
    return SuccessRate(n, None, error, trials, successes / trials)


def brute_force(values: Numbers, target: float, k: int) -> float:
    """The least distance between `target` and the sum of k of the values, by trying all of them."""
    return float(np.abs(_sums(values, k) - target).min())


def meet_in_the_middle(values: Numbers, target: float, k: int) -> float:
    """What `brute_force` finds, by about the square root of its work: sums of either half, one of them sorted."""
    middle = len(values) // 2
    left, right = values[:middle], values[middle:]
    best = math.inf
    for taken in range(max(0, k - len(right)), min(k, len(left)) + 1):
        sums, wanted = np.sort(_sums(left, taken)), target - _sums(right, k - taken)
        above = np.searchsorted(sums, wanted)
        for near in (np.minimum(above, len(sums) - 1), np.maximum(above - 1, 0)):
            best = min(best, float(np.abs(sums[near] - wanted).min()))
    return best


def _sums(values: Numbers, k: int) -> Numbers:
    """The sums of all subsets of size k."""
    if k == 0:
        return np.zeros(1)
    sums: Numbers = np.fromiter(combinations(values, k), dtype=(np.float64, k)).sum(1)
    return sums


def _all_sums(values: Numbers) -> Numbers:
    """The sums of all subsets, sorted."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums, sums + value])
    return np.sort(sums)


def _covers(sums: Numbers, error: float) -> bool:
    # Every z in [−1, 1] is near a sum where no two neighbours leave a gap between them.
    near = np.concatenate([[-1 - error], sums[(sums > -1 - error) & (sums < 1 + error)], [1 + error]])
    return bool((np.diff(near) < 2 * error).all())


def _check(n: int, k: int, error: float, trials: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"subset sums: expected 1 ≤ k ≤ n, got k={k}, n={n}")
    if not error > 0 or trials < 1:
        raise ValueError(f"subset sums: expected an error above 0 and a trial or more, got {error} and {trials}")
