"""Ranks that are threads of this process: the whole algorithm over many processes, without any."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add
from threading import Barrier, BrokenBarrierError
from typing import Any, TypeVar

from torch import Tensor

from sparseflow.ranks import Launched

T = TypeVar("T")
_SECONDS = 30


class ThreadRanks(Launched):
    """One of several threads; `traffic` counts the bytes that it gave to collectives."""

    def __init__(self, rank: int, slots: list[Any], barrier: Barrier) -> None:
        self.rank, self.world = rank, len(slots)
        self.traffic = 0
        self._slots, self._barrier = slots, barrier

    def sum(self, counts: Tensor) -> Tensor:
        self.traffic += counts.numel() * counts.itemsize
        return reduce(add, self._exchange(counts.clone()))

    def gather(self, value: Any) -> list[Any]:
        text = json.dumps(value)
        self.traffic += len(text)
        return [json.loads(other) for other in self._exchange(text)]

    def _exchange(self, value: Any) -> list[Any]:
        self._slots[self.rank] = value
        self._barrier.wait(_SECONDS)
        found = list(self._slots)
        # Nobody writes the next value before all have read this one.
        self._barrier.wait(_SECONDS)
        return found


def in_threads(world: int, function: Callable[[ThreadRanks], T]) -> list[T]:
    """What the function returns on each of so many ranks; the first rank's error where one raises."""
    slots: list[Any] = [None] * world
    barrier = Barrier(world)

    def run(rank: int) -> T:
        try:
            return function(ThreadRanks(rank, slots, barrier))
        except BaseException:
            # The others would wait for this one.
            barrier.abort()
            raise

    with ThreadPoolExecutor(world) as pool:
        futures = [pool.submit(run, rank) for rank in range(world)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    first = next((error for error in errors if not isinstance(error, BrokenBarrierError)), None)
    if first is not None:
        raise first
    return [future.result() for future in futures]
