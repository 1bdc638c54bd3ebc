"""Which configuration of a kernel is fastest on this GPU: each is run and timed once, and the answer is kept.

Not Triton's own autotuner: that tunes inside of the first call of a training step, on whatever tensors it has, keeps
nothing on disk, and cannot run under the interpreter. Here nothing is timed unless somebody asks.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# A timed run is this long in seconds, and there are so many; the median counts.
_RUN = 2e-3
_RUNS = 5

# Runs a kernel and returns its output; seconds of one run. RuntimeError where it fails.
Timer = Callable[[Callable[[], Tensor]], float]

_C = TypeVar("_C", bound="DataclassInstance")


@dataclass(frozen=True)
class Key:
    """What a timing depends on. Sizes come in buckets, so that layers of about one size share what was tuned."""

    chip: str
    kernel: str
    rows: int
    columns: int
    tokens: int
    dtype: torch.dtype
    density: float

    def __str__(self) -> str:
        sizes = "x".join(str(_bucket(size)) for size in (self.rows, self.columns, self.tokens))
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.chip} | {self.kernel} | {sizes} | {dtype} | {density_bucket(self.density)}"


class Tuner:
    """Times configurations and remembers: `known` maps keys to a configuration's text and its seconds.

    Give a mapping that was read from disk, and write it back. One warning a key where nothing could be timed.
    """

    def __init__(self, known: MutableMapping[str, object], timer: Timer | None = None) -> None:
        self.known = known
        self._timer = timer or gpu_seconds

    def seconds(self, key: str, run: Callable[[], Tensor]) -> float:
        """The seconds of one kernel as it is, infinite where it fails; timed once a key."""
        found = self.known.get(key)
        if isinstance(found, float) and found > 0:
            return found
        seconds, _ = self._timed(run)
        if seconds < math.inf:
            self.known[key] = seconds
        return seconds

    def best(self, key: Key, configs: Sequence[_C], default: _C, run: Callable[[_C], Tensor]) -> tuple[_C, float]:
        """The fastest of the configurations, the default among them, and its seconds (infinite where none ran).

        The default, untimed, under Triton's interpreter. What does not fit the chip is passed over; where nothing
        could be timed it is the default too, with a warning that says so.
        """
        if interpreted():
            return default, math.inf
        found = self.known.get(str(key))
        if isinstance(found, list) and len(found) == 2:
            for config in (default, *configs):
                if config_text(config) == found[0]:
                    return config, float(found[1])
        tried = [(self._timed(functools.partial(run, config)), config) for config in dict.fromkeys((default, *configs))]
        (seconds, _), best = min(tried, key=lambda one: one[0][0])
        if seconds == math.inf:
            reason = tried[0][0][1]
            warnings.warn(
                f"no configuration of {key} could be timed ({reason}); using {config_text(default)}", stacklevel=2
            )
            return default, math.inf
        self.known[str(key)] = [config_text(best), seconds]
        return best, seconds

    def _timed(self, run: Callable[[], Tensor]) -> tuple[float, str]:
        """Seconds, or infinity and why."""
        from triton.errors import TritonError

        try:
            if not bool(run().isfinite().all()):
                return math.inf, "its output is not finite"
            return self._timer(run), ""
        # Too much shared memory, a compiler that gives up, no memory, no GPU.
        except (RuntimeError, TritonError) as error:
            return math.inf, str(error).partition("\n")[0]


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on the CPU, as TRITON_INTERPRET=1 asks."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def config_text(config: DataclassInstance) -> str:
    """`tokens=64,warps=4`: the fields of a configuration, all of them whole numbers."""
    return ",".join(f"{one.name}={int(getattr(config, one.name))}" for one in fields(config))


def parse_config(kind: type[_C], text: str) -> _C:
    """The inverse of `config_text`. `ValueError` for anything else."""
    try:
        found = {name: int(number) for name, _, number in (part.partition("=") for part in text.split(","))}
        return kind(**found)
    except (TypeError, ValueError) as error:
        names = ",".join(f"{one.name}=N" for one in fields(kind))
        raise ValueError(f"expected a configuration such as {names}, got {text!r}: {error}") from None


def density_bucket(density: float) -> float:
    """The nearest of the powers of the fourth root of two: no density is more than a tenth off."""
    return float(f"{2 ** (round(4 * math.log2(density)) / 4):.3g}") if density > 0 else 0.0


def gpu_seconds(run: Callable[[], Tensor]) -> float:
    """Median seconds of a run on the GPU, by events, after one warm-up. RuntimeError where there is no GPU."""
    if not torch.cuda.is_available():
        raise RuntimeError("there is no GPU")
    run()
    torch.cuda.synchronize()
    once = _events(run, 1)
    repeats = max(1, min(1000, int(_RUN / max(once, 1e-7))))
    return median(_events(run, repeats) for _ in range(_RUNS))


def _events(run: Callable[[], Tensor], repeats: int) -> float:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


def _bucket(size: int) -> int:
    """The nearest power of two."""
    return 1 << max(0, round(math.log2(max(1, size))))
