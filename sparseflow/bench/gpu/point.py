"""One thing measured at one place: first checked, then timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from sparseflow.bench.gpu.clock import Launch, take_turns

_OURS = ("compact", "gather", "panel", "triton", "planned")

# "ok" or what is wrong with a result, and its relative error.
Verdict = tuple[str, float]


@dataclass(frozen=True)
class Point:
    """Seconds of one launch, sample by sample: of a `product`, on a `side` such as dense or gather.

    `shape` is (O, I, T). `check` is "ok" or what is wrong with the result; `error` is its relative error. Nothing
    wrong has seconds. `by` says how they were taken, `config` with which tiles. `moved` are the bytes of a launch where
    a rate is what we want to know. `absent` says why nothing ran.
    """

    section: str
    side: str
    product: str
    dtype: str
    density: float
    shape: tuple[int, int, int]
    check: str = "ok"
    error: float | None = None
    seconds: tuple[float, ...] = ()
    by: str = ""
    config: str = ""
    moved: int = 0
    absent: str = ""

    def __post_init__(self) -> None:
        assert not self.seconds or (self.check == "ok" and not self.absent), "a wrong result has no time"

    @property
    def ours(self) -> bool:
        """Whether the side is one of our own, so that a wrong result breaks a promise."""
        return self.side.split()[0] in _OURS

    @property
    def time(self) -> float | None:
        """Median seconds, None where nothing was timed."""
        return median(self.seconds) if self.seconds else None

    def to_json(self) -> dict[str, Any]:
        """Plain data, with every sample."""
        return {**asdict(self), "time": self.time}

    def __str__(self) -> str:
        place = f"{self.product:<8} {self.dtype:<5} {self.density:>6.1%}  {'×'.join(map(str, self.shape)):<16} "
        line = f"{place}{self.side:<22}"
        if self.absent:
            return f"{line} not there: {self.absent}"
        if self.check != "ok":
            return f"{line} WRONG RESULT: {self.check}"
        error = "" if self.error is None else f"error {self.error:.1e}"
        time = "" if self.time is None else f"{self.time * 1e6:10.1f} µs"
        time += f" {self.moved / self.time / 1e12:.2f} TB/s" if self.time and self.moved else ""
        return f"{line}{time}  {error:<14} {self.config} {self.by if self.by != 'graph' else ''}".rstrip()


@dataclass(frozen=True)
class Ready:
    """What can be launched now, the judge of its result, and how it was configured."""

    launch: Launch
    judge: Callable[[], Verdict]
    config: str = ""


@dataclass(frozen=True)
class Side:
    """What is to be measured: the point that it will be, and what makes it ready (packs, converts, tunes)."""

    point: Point
    prepare: Callable[[], Ready]


class Absent(Exception):
    """Raised while a side is prepared or judged, where the machine, or torch, cannot run it; the text says why."""


def measure(sides: Sequence[Side], copies: int, timed: bool) -> list[Point]:
    """The sides' points: all checked first, then those that are right timed in turn, if `timed`."""
    checked = [_checked(side) for side in sides]
    points = [point for point, _ in checked]
    if timed:
        right = {str(number): ready.launch for number, (_, ready) in enumerate(checked) if ready is not None}
        for key, timing in take_turns(right, copies).items():
            points[int(key)] = replace(points[int(key)], seconds=timing.samples, by=timing.by)
    return points


def _checked(side: Side) -> tuple[Point, Ready | None]:
    """The point without times, and what to time if its result is right."""
    try:
        ready = side.prepare()
        check, error = ready.judge()
    except Absent as reason:
        return replace(side.point, absent=str(reason)), None
    # Whatever a launch raises, from a compiler, a driver or torch, is its result; the other sides go on.
    except Exception as raised:
        return replace(side.point, check=f"{type(raised).__name__}: {first_line(raised)}"), None
    point = replace(side.point, check=check, error=error, config=ready.config)
    return point, ready if check == "ok" else None


def first_line(error: Exception) -> str:
    """The first line of its text."""
    return next(iter(str(error).strip().splitlines()), "")
