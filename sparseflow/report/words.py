"""How the report writes numbers and verdicts. What was not measured is a dash, never a zero."""

from collections.abc import Sequence

from sparseflow.report.result import RoundVerdict, Spread

MISSING = "–"
Row = list[str]


def headline(verdict: RoundVerdict | None) -> str:
    """The verdict in one sentence."""
    if verdict is None:
        return "No verdict: this run did not compare a ticket with its controls."
    at = "" if verdict.density is None else f" at {percent(verdict.density)} of its weights"
    if verdict.value == "ticket":
        return f"The pruned network{at} is a winning ticket."
    if verdict.value == "not a ticket":
        return f"The pruned network{at} is not a winning ticket."
    return f"Undecided whether the pruned network{at} is a winning ticket."


def percent(fraction: float | None) -> str:
    """A density or share to three digits: 0.10832 is `10.8 %`."""
    return MISSING if fraction is None else f"{100 * fraction:.3g} %"


def number(value: float | None) -> str:
    """A count, rounded, with thousands separated."""
    return MISSING if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """A time with a unit that suits it: `1.70 ms`, `15.2 s`, `3 min 23 s`, `2 h 5 min`."""
    if seconds is None:
        return MISSING
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def times(ratio: float | None) -> str:
    """A ratio against dense: `0.42×`."""
    return MISSING if ratio is None else f"{ratio:.2f}×"


def points(value: float | None) -> str:
    """A difference in points with its sign."""
    return MISSING if value is None else f"{value:+.2f}".replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """An interval in points."""
    return MISSING if low is None or high is None else f"{points(low)} to {points(high)}"


def accuracy_percent(fraction: float | None) -> str:
    """An accuracy to a hundredth of a point: 0.88123 is `88.12 %`."""
    return MISSING if fraction is None else f"{100 * fraction:.2f} %"


def accuracy_range(spread: Spread | None) -> str:
    """A mean accuracy, with the least and greatest over seeds where they are several."""
    if spread is None or spread.count == 1:
        return accuracy_percent(spread.mean if spread is not None else None)
    return f"{accuracy_percent(spread.mean)} ({100 * spread.low:.2f}–{100 * spread.high:.2f})"


def selected(rounds: Sequence[int], most: int, always: int | None = None) -> list[int]:
    """At most `most` (two or more) of the sorted rounds: first, last, `always` if present, others spread."""
    if len(rounds) <= most:
        return list(rounds)
    spread = {rounds[round(i * (len(rounds) - 1) / (most - 1))] for i in range(most)}
    if always is not None and always in rounds and always not in spread:
        inner = spread - {rounds[0], rounds[-1]}
        spread.discard(min(inner, key=lambda r: abs(r - always), default=rounds[0]))
        spread.add(always)
    return sorted(spread)
