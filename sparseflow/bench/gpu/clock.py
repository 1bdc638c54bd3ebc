"""Seconds of launches on a GPU: CUDA graphs, several inputs in turn, the sides of a ratio in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

REPEATS = 9
# Milliseconds that one sample lasts at least: a replay costs some microseconds beside its launches.
_SAMPLE = 2.0
_MOST_LAUNCHES = 200

# Runs one launch on the inputs of that number.
Launch = Callable[[int], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one launch, sample by sample; `by` says how they were taken."""

    samples: tuple[float, ...]
    by: str

    @property
    def seconds(self) -> float:
        """The median."""
        return median(self.samples)


def copies_beyond(cache: int, nbytes: int) -> int:
    """How many inputs of `nbytes` to take in turn, so that none is still in a cache of so many bytes: at least two."""
    return max(2, math.ceil(2 * cache / max(nbytes, 1)))


def take_turns(sides: Mapping[str, Launch], copies: int, repeats: int = REPEATS) -> dict[str, Timing]:
    """Times of one launch of each side: `repeats` samples of each, side by side in turn.

    A sample goes `copies` inputs round and round, at least two milliseconds, replayed from a CUDA graph. Where a
    launch cannot be captured it is timed by events, with the cost of launching, and `by` says why.
    """
    replays = {name: _Replay(launch, copies) for name, launch in sides.items()}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, replay in replays.items():
            samples[name].append(_milliseconds(replay.run) / 1e3 / replay.launches)
    return {name: Timing(tuple(samples[name]), replays[name].by) for name in sides}


class _Replay:
    """A sample's launches of one side, captured in a graph where that can be done."""

    def __init__(self, launch: Launch, copies: int) -> None:
        for number in range(copies):
            launch(number)
        once = _milliseconds(lambda: _round(launch, copies)) / copies
        rounds = math.ceil(min(_MOST_LAUNCHES, _SAMPLE / max(once, 1e-4)) / copies)
        self.launches = rounds * copies
        self.by = "graph"
        self.run: Callable[[], object] = lambda: _round(launch, self.launches, copies)
        try:
            self.run = capture(self.run)
        # What torch raises where a launch waits for the device, or allocates outside of torch.
        except RuntimeError as error:
            torch.cuda.synchronize()
            self.by = f"events, not captured: {str(error).splitlines()[0]}"
        self.run()


def capture(run: Callable[[], object]) -> Callable[[], object]:
    """What replays all that `run` launches, as one CUDA graph. `RuntimeError` where that cannot be captured."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            run()
    finally:
        # A capture that fails leaves its own stream behind as the current one.
        torch.cuda.set_stream(stream)
    return graph.replay


def _round(launch: Launch, launches: int, copies: int | None = None) -> None:
    for number in range(launches):
        launch(number % (copies or launches))


def _milliseconds(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
