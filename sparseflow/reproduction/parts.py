"""What rows that train consist of: one measurement for each seed, as many at a time as there are cores.

Each runs in a process of its own with one thread: a step of LeNet is too small for more. Rows may share a part, as
rows 3 to 6 share a search.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sparseflow.training.records import write_json

# Seed → plain data, which JSON can hold.
Part = Callable[[int], Any]


class Parts:
    """Measurements that are under way or done; they are kept in `folder`. Made by `measuring`."""

    def __init__(self, folder: Path, pool: Executor, resume: bool) -> None:
        self._folder, self._pool, self._resume = folder, pool, resume
        self._begun: dict[Path, Future[None]] = {}

    def begin(self, part: Part, seeds: Sequence[int]) -> None:
        """Queues what is neither under way nor, on resuming, kept from before."""
        for seed in seeds:
            kept = self._kept(part, seed)
            if kept not in self._begun and not (self._resume and kept.exists()):
                self._begun[kept] = self._pool.submit(_measure, part, seed, kept)

    def found(self, part: Part, seeds: Sequence[int]) -> tuple[list[Any], float]:
        """What was measured for each seed, and the seconds that all of it took; waits for it."""
        self.begin(part, seeds)
        measured, seconds = [], 0.0
        for seed in seeds:
            kept = self._kept(part, seed)
            if kept in self._begun:
                self._begun[kept].result()
            one = json.loads(kept.read_text(encoding="utf-8"))
            measured.append(one["found"])
            seconds += one["seconds"]
        return measured, seconds

    def _kept(self, part: Part, seed: int) -> Path:
        return self._folder / f"{part.__module__.rpartition('.')[2]}-{part.__name__}-{seed}.json"


@contextmanager
def measuring(folder: Path, processes: int, resume: bool = False) -> Iterator[Parts]:
    """Measures in so many processes. With `resume`, takes what an earlier call has left in the folder."""
    if processes < 1:
        raise ValueError(f"processes: expected at least 1, got {processes}")
    folder.mkdir(parents=True, exist_ok=True)
    # Not forked: torch's threads do not survive it.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield Parts(folder, pool, resume)
    finally:
        # After an error nobody waits for the rest.
        pool.shutdown(cancel_futures=True)


def _measure(part: Part, seed: int, kept: Path) -> None:
    began = time.perf_counter()
    found = part(seed)
    write_json(kept, {"found": found, "seconds": time.perf_counter() - began})
