"""The bounds of Natale et al., 2024 (arXiv:2410.14754), "On the Sparsity of the Strong Lottery Ticket Hypothesis".

The random fixed-size subset sum problem: of n numbers drawn at random, do k add up to z within `error`? The theorems
say how n grows; their constants are not given, so that `constant` is 1 throughout unless the caller knows better, and
only the shape is to be believed. n numbers; k in each subset; density k/n; logarithms to base 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# A fixed point is found where an iteration moves it by less than this fraction.
_SETTLED = 1e-15


def entropy(x: float) -> float:
    """H₂(x) = −x log₂ x − (1 − x) log₂(1 − x), in bits, of x in (0, 1)."""
    if not 0 < x < 1:
        raise ValueError(f"entropy: expected x in (0, 1), got {x}")
    return -x * math.log2(x) - (1 - x) * math.log2(1 - x)


def subset_ratio(n: int, k: int, error: float) -> float:
    """n · H₂(k/n) / log₂(k/error): theorem 2 asks that it be at least a constant."""
    return n * entropy(k / n) / math.log2(k / error)


def smallest_sample(k: int, error: float, constant: float = 1.0) -> int:
    """Theorem 2: the smallest n ≥ 2k with n ≥ constant · log₂(k/error) / H₂(k/n).

    So many numbers, uniform in [−1, 1], have k that add up to any one z in [−√k, √k] within `error`, with at least a
    constant probability.
    """
    _check(error, constant, k=k)
    # n · H₂(k/n) grows with n.
    return _smallest(2 * k, lambda n: subset_ratio(n, k, error) >= constant)


def uniform_sample(k: int, error: float, constant: float = 1.0) -> int:
    """Corollary 1: the smallest n ≥ 2k with n ≥ constant · log₂²(k/error) / H₂(k/n).

    So many have such k for all z in [−√k, √k] at once, with a probability of at least 1 − error.
    """
    _check(error, constant, k=k)
    return _smallest(2 * k, lambda n: n * entropy(k / n) >= constant * math.log2(k / error) ** 2)


def large_subset_size(k: int, error: float, constant: float = 1.0) -> int | None:
    """Corollary 2: the smallest n ≥ 2k with n ≥ 2 · constant · log₂²(1/error) / H₂(k/n); None where k is too small.

    It holds for k ≥ 2 · constant · (log₂² k + 2 log₂ k log₂(1/error)).
    """
    _check(error, constant, k=k)
    if not _is_large(k, error, constant):
        return None
    return _smallest(2 * k, lambda n: n * entropy(k / n) >= 2 * constant * math.log2(1 / error) ** 2)


@dataclass(frozen=True)
class SampleAtDensity:
    """The n that each statement asks for where k = density · n: the largest solutions. None where k is too small."""

    theorem_2: float
    corollary_1: float
    corollary_2: float | None


def sample_at_density(density: float, error: float, constant: float = 1.0) -> SampleAtDensity:
    """Theorem 2 and corollaries 1 and 2, as above, with k growing along with n."""
    _check(error, constant, density=density)
    bits = entropy(density)

    def largest(power: int) -> float:
        return _largest(lambda n: constant * max(0.0, math.log2(density * n / error)) ** power / bits)

    second = 2 * constant * math.log2(1 / error) ** 2 / bits
    fits = density * second >= 1 and _is_large(density * second, error, constant)
    return SampleAtDensity(largest(1), largest(2), second if fits else None)


def fixed_point(inputs: int, outputs: int, layers: int, density: float, error: float, constant: float = 1.0) -> float:
    """Theorem 3: n* of a target layer, the largest solution of the equation below; with d inputs and d' outputs

        n* = constant · log₂²(2 · layers · d · d' · density · n* / error) / H₂(density).

    In a random network whose two layers for this one have 2 d n* units between them, pruning to `density` leaves one
    that approximates any target within `error`, with a probability of at least 1 − error. ValueError where the error
    is so large that the equation has no solution.
    """
    _check(error, constant, density=density)
    scale = 2 * layers * inputs * outputs * density / error
    bits = entropy(density)
    return _largest(lambda n: constant * math.log2(scale * n) ** 2 / bits if scale * n > 1 else 0.0)


def lower_bound(width: int, density: float, error: float) -> float:
    """Theorem 5: the parameters that a network needs, of any kind: the largest n with k = density · n and

        n = (d² / 2) · log₂(k / error) / H₂(k / n).

    For all linear maps of d values with a spectral norm of at most √k; for error < 1/16 and a density ≤ 0.84.
    """
    _check(error, 1.0)
    if not (0 < density <= 0.84 and error < 1 / 16):
        raise ValueError(
            f"theorem 5: expected a density in (0, 0.84] and an error below 1/16, got density={density}, error={error}"
        )
    bits = entropy(density)
    return _largest(lambda n: width**2 / 2 * math.log2(density * n / error) / bits if density * n > error else 0.0)


def _is_large(k: float, error: float, constant: float) -> bool:
    """Whether corollary 2 holds for subsets of that size."""
    return k >= 2 * constant * (math.log2(k) ** 2 + 2 * math.log2(k) * math.log2(1 / error))


def _largest(function: Callable[[float], float]) -> float:
    """The largest fixed point of a function that grows more slowly than its argument: reached from above."""
    n = 1e30
    for _ in range(10_000):
        # Down to it, and not below.
        after = function(n)
        if after <= 1:
            break
        if abs(after - n) <= _SETTLED * n:
            return after
        if after > n:
            # Rounding alone turns the way.
            return n
        n = after
    raise ValueError("this error is too large for the theorem to say anything: its equation has no solution above 1")


def _smallest(least: int, enough: Callable[[int], bool]) -> int:
    """The smallest integer from `least` on that is enough, where all above one that is are too."""
    high = least
    while not enough(high):
        high *= 2
    low = max(least, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _check(error: float, constant: float, *, k: int | None = None, density: float | None = None) -> None:
    if not 0 < error < 1:
        raise ValueError(f"theory: expected an error in (0, 1), got {error}")
    if not constant > 0:
        raise ValueError(f"theory: expected a constant above 0, got {constant}")
    if k is not None and k < 1:
        raise ValueError(f"theory: expected subsets of k ≥ 1 numbers, got {k}")
    if density is not None and not 0 < density <= 0.5:
        raise ValueError(f"theory: expected a density in (0, 0.5], for which the theorems hold, got {density}")
