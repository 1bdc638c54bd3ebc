"""Measured costs kept on disk, so that a layer of one shape is timed once on a machine."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from sparseflow.hardware.backends import Cost
from sparseflow.hardware.cache import cache_folder, environment, read_cache, write_cache
from sparseflow.hardware.workload import Workload

_FORMAT = "sparseflow timings 1"
# The oldest go first. About half a kilobyte each.
_LIMIT = 4000


class Timings:
    """Costs by machine, versions, native order and workload. What is put in is written by `save`, all at once.

    Kept in the `cache_folder`, if there is one. Nothing here ever fails: a file that cannot be read or written is no
    cache. With `fresh` nothing is found, but what is measured replaces what was there.
    """

    def __init__(self, fresh: bool = False) -> None:
        self._path = _path()
        self._found = {} if fresh or self._path is None else read_cache(self._path, _FORMAT)
        self._new: dict[str, list[float]] = {}

    def get(self, layout: str, work: Workload) -> Cost | None:
        """The cost of a workload in a backend's native order, measured on a machine like this; None if unknown."""
        key = _key(layout, work)
        return _cost(self._new.get(key, self._found.get(key)))

    def put(self, layout: str, work: Workload, cost: Cost) -> None:
        """Keeps a measured cost."""
        self._new[_key(layout, work)] = [cost.forward, cost.dgrad, cost.wgrad, cost.update, cost.bytes]

    def save(self) -> None:
        """Adds the new costs to the file. Of two processes that write at once, one may lose its own."""
        if self._path is None or not self._new:
            return
        merged = read_cache(self._path, _FORMAT)
        for key, numbers in self._new.items():
            # Last, as the youngest.
            merged.pop(key, None)
            merged[key] = numbers
        write_cache(self._path, _FORMAT, dict(list(merged.items())[-_LIMIT:]))


def _path() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "timings.json"


def _key(layout: str, work: Workload) -> str:
    return f"{environment(work.device)} | {torch.get_float32_matmul_precision()} | {layout} | {work}"


def _cost(numbers: object) -> Cost | None:
    if not isinstance(numbers, list) or len(numbers) != 5:
        return None
    if not all(isinstance(number, (int, float)) and 0 <= number < math.inf for number in numbers):
        return None
    forward, dgrad, wgrad, update, size = numbers
    return Cost(forward, dgrad, wgrad, update, int(size), measured=True)
