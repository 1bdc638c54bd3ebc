"""Whether a pruned network is a winning ticket, with an interval (Frankle & Carbin, 2019, arXiv:1803.03635).

Legend: S seeds, N test examples, R resamples. Scores lie in [0, 1]; differences are points, 100 × accuracy.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

VerdictValue = Literal["ticket", "not a ticket", "undecided"]

ARMS = ("ticket", "dense", "reinit", "shuffle", "random")
# A ticket may lose this many points to the dense network and still match it.
DENSE_MARGIN = 0.3

_ARM_IN_WORDS = {
    "dense": "the dense network",
    "reinit": "the same mask with fresh weights",
    "shuffle": "the shuffled mask",
    "random": "a random mask with fresh weights",
}
_DECIDING = ("reinit", "shuffle", "dense")
_FEWEST_RESAMPLES = 100
_FEWEST_SEEDS_FOR_T = 5


@dataclass(frozen=True)
class Comparison:
    """Ticket minus another arm, in points.

    `low` to `high` is the 95 % bootstrap interval over test examples of the mean over seeds: it speaks about
    these seeds. `t_low` to `t_high` is the 95 % t-interval over seeds, None below five seeds.
    """

    mean: float
    low: float
    high: float
    t_low: float | None
    t_high: float | None
    seeds: int
    examples: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} points [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Verdict:
    """Whether the ticket is one, the comparisons behind it by arm name, and the reason in plain sentences."""

    value: VerdictValue
    comparisons: dict[str, Comparison]
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain dicts, strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value}: {self.reason}"


def verdict(arms: Mapping[str, ArrayLike], *, resamples: int = 10_000, seed: int = 0) -> Verdict:
    """Whether `arms["ticket"]` is a winning ticket, from paired scores of the arms on the test set.

    Each arm is an array (seeds, examples) of scores in [0, 1] at early stop: 0 or 1 for classification, the
    token accuracy of a sequence for language. Row s is the same seed in each arm, column i the same example.

    `ticket`: above `reinit`, above `shuffle` and above `dense` - 0.3 points, each with its whole interval.
    `not a ticket`: the whole interval below `dense` - 0.3 points, or below `reinit`. Otherwise `undecided`.
    `random` is compared and does not decide. `resamples` and `seed` are those of the bootstrap.

    Raises ValueError for an unknown arm, no ticket, unequal shapes, scores out of range, too few resamples.
    """
    scores_by_arm = _checked(arms)
    if resamples < _FEWEST_RESAMPLES:
        raise ValueError(f"a 95 % interval needs resamples >= {_FEWEST_RESAMPLES}, got {resamples}")
    ticket_SN = scores_by_arm["ticket"]
    comparisons: dict[str, Comparison] = {}
    for arm in ARMS[1:]:
        if arm in scores_by_arm:
            # A generator for each arm: one more arm changes no other interval.
            rng = np.random.default_rng([seed, ARMS.index(arm)])
            comparisons[arm] = _compare(ticket_SN, scores_by_arm[arm], resamples, rng)
    value, because = _decide(comparisons)
    seeds, examples = ticket_SN.shape
    scope = f"Brackets: 95 % intervals over {examples:,} test examples; they speak about {_these_seeds(seeds)}."
    return Verdict(value, comparisons, f"{because} {scope}" if comparisons else because)


def _checked(arms: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    unknown = sorted(set(arms) - set(ARMS))
    if unknown:
        raise ValueError(f"no arm named {unknown[0]!r}; choose from: {', '.join(ARMS)}")
    if "ticket" not in arms:
        raise ValueError(f"expected the scores of the arm 'ticket', got only: {', '.join(arms) or 'no arms'}")
    scores_by_arm = {arm: np.asarray(scores, dtype=np.float64) for arm, scores in arms.items()}
    shape = scores_by_arm["ticket"].shape
    for arm, scores in scores_by_arm.items():
        if scores.ndim != 2 or scores.size == 0:
            raise ValueError(
                f"scores of {arm!r} must have shape (seeds, examples), got {scores.shape}; "
                "for one seed pass scores[None, :]"
            )
        if scores.shape != shape:
            raise ValueError(
                f"arms are paired by seed and example: {arm!r} has shape {scores.shape}, "
                f"'ticket' has {shape}; score the same seeds on the same test examples in each arm"
            )
        if not np.all((scores >= 0) & (scores <= 1)):
            raise ValueError(f"scores of {arm!r} must be accuracies in [0, 1]; got a value outside, or NaN")
    return scores_by_arm


def _compare(
    ticket_SN: NDArray[np.float64], other_SN: NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> Comparison:
    points_SN = 100.0 * (ticket_SN - other_SN)
    seeds, examples = points_SN.shape
    means_R = _bootstrap_means(points_SN.mean(axis=0), resamples, rng)
    low, high = np.quantile(means_R, (0.025, 0.975))
    mean = float(points_SN.mean())
    t_low: float | None = None
    t_high: float | None = None
    if seeds >= _FEWEST_SEEDS_FOR_T:
        error_of_mean = float(points_SN.mean(axis=1).std(ddof=1)) / seeds**0.5
        reach = _t_quantile(seeds - 1) * error_of_mean
        t_low, t_high = mean - reach, mean + reach
    return Comparison(mean, float(low), float(high), t_low, t_high, seeds, examples)


def _bootstrap_means(points_N: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of `resamples` draws of N examples with replacement.

    Drawing how often each distinct value comes up is the same experiment as drawing examples, and much
    cheaper for 0/1 scores: they have at most 2 seeds + 1 distinct differences.
    """
    examples = len(points_N)
    values, counts = np.unique(points_N, return_counts=True)
    # One distinct value costs the multinomial about as much as 32 drawn examples.
    if 32 * len(values) <= examples:
        draws = rng.multinomial(examples, counts / examples, size=resamples)
        means: NDArray[np.float64] = draws @ values / examples
        return means
    means = np.empty(resamples)
    chunk = max(1, 1_000_000 // examples)
    for start in range(0, resamples, chunk):
        part = means[start : start + chunk]
        part[:] = points_N[rng.integers(examples, size=(len(part), examples))].mean(axis=1)
    return means


def _t_quantile(dof: int) -> float:
    """The 97.5 % quantile of Student's t, within 0.001 from 4 degrees of freedom on.

    Abramowitz & Stegun, 1964, eq. 26.7.5.
    """
    z = 1.959963984540054
    return (
        z
        + (z**3 + z) / (4 * dof)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * dof**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * dof**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * dof**4)
    )


def _decide(comparisons: Mapping[str, Comparison]) -> tuple[VerdictValue, str]:
    missing = [arm for arm in _DECIDING if arm not in comparisons]
    floor = {"reinit": 0.0, "shuffle": 0.0, "dense": -DENSE_MARGIN}
    for arm in ("dense", "reinit"):
        if arm in comparisons and comparisons[arm].high < floor[arm]:
            margin = f" by more than {DENSE_MARGIN} points" if arm == "dense" else ""
            return (
                "not a ticket",
                f"The pruned network is worse than {_ARM_IN_WORDS[arm]}{margin}: {comparisons[arm]}.",
            )
    if missing:
        absent = " and ".join(_ARM_IN_WORDS[arm] for arm in missing)
        because = f"The pruned network was not compared with {absent}: without that it cannot be a ticket."
        return "undecided", because
    unsure = [arm for arm in _DECIDING if not comparisons[arm].low > floor[arm]]
    if unsure:
        shown = "; ".join(f"against {_ARM_IN_WORDS[arm]} {comparisons[arm]}" for arm in unsure)
        return "undecided", f"The difference is too small, or this test too short, to decide: {shown}."
    against_masks = " and ".join(f"{_ARM_IN_WORDS[arm]} by {comparisons[arm]}" for arm in ("reinit", "shuffle"))
    against_dense = f"{_ARM_IN_WORDS['dense']}: {comparisons['dense']}"
    return "ticket", f"The pruned network beats {against_masks}, and holds against {against_dense}."


def _these_seeds(seeds: int) -> str:
    return "this one seed" if seeds == 1 else f"these {seeds} seeds"
