"""One promise and what was measured for it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["met", "missed", "wrong result", "not measured", "no promise"]


@dataclass(frozen=True)
class Figure:
    """One promise: its samples in `unit`, and the `limit` that they must stay above or below, if there is one.

    `aim` is what we would like to reach. `check` is "ok", or what was wrong with the result: then nothing was
    timed. `absent` says why nothing could be measured. `seconds` are the samples of each side of a ratio.
    """

    name: str
    unit: str
    limit: float | None
    at_least: bool
    samples: tuple[float, ...]
    check: str = "ok"
    aim: float | None = None
    absent: str = ""
    seconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median, upper quartile."""
        if len(self.samples) == 1:
            # A count, which has no spread.
            return self.samples[0], self.samples[0], self.samples[0]
        low, middle, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, middle, high

    @property
    def verdict(self) -> Verdict:
        """What came out. Missed is what even the better quartile misses."""
        if self.absent:
            return "not measured"
        if self.check != "ok":
            return "wrong result"
        if self.limit is None:
            return "no promise"
        low, _, high = self.quartiles
        return "missed" if (high < self.limit if self.at_least else low > self.limit) else "met"

    @property
    def missed(self) -> bool:
        """Whether the promise is broken: a limit missed, or a wrong result."""
        return self.verdict in ("missed", "wrong result")

    def to_json(self) -> dict[str, Any]:
        """Plain data, with every sample."""
        quartiles = self.quartiles if self.samples else None
        return {
            **asdict(self),
            "quartiles": quartiles,
            "verdict": self.verdict,
            "missed": self.missed,
            "text": str(self),
        }

    def __str__(self) -> str:
        if self.absent:
            return f"{self.name:<62} not measured: {self.absent}"
        if self.check != "ok":
            return f"{self.name:<62} WRONG RESULT: {self.check}"
        low, middle, high = self.quartiles
        spread = f"[{low:.3f}, {high:.3f}]"
        sign = "≥" if self.at_least else "≤"
        bound = "" if self.limit is None else f"{sign} {self.limit:g}"
        aim = "" if self.aim is None else f"aim {self.aim:g}"
        word = "" if self.limit is None else self.verdict
        return f"{self.name:<62} {middle:8.3f} {spread:<18} {self.unit:<8} {bound:<7} {aim:<7} {word}".rstrip()
