"""Seconds of things that take turns, here and in fresh processes."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import torch

REPEATS = 9
# Seconds that one sample lasts at least, so that the clock and a single interruption weigh little.
_SAMPLE = 0.05
_MOST_LOOPS = 200


def take_turns(sides: Mapping[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, tuple[float, ...]]:
    """Seconds of one call of each side, `repeats` samples of each, side by side in turn after two warm-ups.

    A side that is short is called several times a sample, and the time divided.
    """
    loops = {name: _loops(side) for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            times[name].append(_timed(side, loops[name]))
    return {name: tuple(samples) for name, samples in times.items()}


def faster(times: Mapping[str, tuple[float, ...]]) -> str:
    """The side with the least median."""
    return min(times, key=lambda name: median(times[name]))


def ratios(slow: tuple[float, ...], fast: tuple[float, ...]) -> tuple[float, ...]:
    """How many times faster the second is, repeat by repeat."""
    return tuple(a / b for a, b in zip(slow, fast, strict=True))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads inside, as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fresh_process(code: str, *arguments: str) -> str:
    """What Python code prints in a process of its own; its errors go where ours do."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def process_seconds(code: str) -> float:
    """Seconds of Python code in a process of its own, from its start to its end."""
    return _timed(lambda: fresh_process(code), 1)


def _loops(side: Callable[[], object]) -> int:
    side()
    return min(_MOST_LOOPS, math.ceil(_SAMPLE / max(_timed(side, 1), 1e-9)))


def _timed(side: Callable[[], object], loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        side()
    return (time.perf_counter() - start) / loops
