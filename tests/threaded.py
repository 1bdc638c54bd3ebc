"""Ranks that are threads of one process: what they tell each other goes through JSON, as between processes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparseflow.ranks import Launched, Ranks

T = TypeVar("T")
# Seconds after which a rank that waits for one that has gone gives up.
_PATIENCE = 10.0


class Threaded(Launched):
    """One rank of `together`."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, board: list[str]) -> None:
        self.rank, self.world = rank, world
        self._barrier, self._board = barrier, board

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = json.dumps(value)
        self._barrier.wait(_PATIENCE)
        found = [json.loads(text) for text in self._board]
        self._barrier.wait(_PATIENCE)
        return found

    def sum(self, counts: Tensor) -> Tensor:
        return torch.tensor(self.gather(counts.tolist()), dtype=counts.dtype).sum(0)


def together(world: int, function: Callable[[Ranks], T]) -> list[T | BaseException]:
    """What the function returns or raises, by rank."""
    barrier, board = threading.Barrier(world), [""] * world
    found: list[T | BaseException] = [AssertionError("no result")] * world

    def run(rank: int) -> None:
        try:
            found[rank] = function(Threaded(rank, world, barrier, board))
        except BaseException as error:
            found[rank] = error
            if not isinstance(error, threading.BrokenBarrierError):
                # Whoever has left without the others is waited for by none.
                threading.Timer(0.2, barrier.abort).start()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
