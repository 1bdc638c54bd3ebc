"""The processes of one launch, as everything above them sees them: who am I, and what do all of us say?

What passes here is small and on the CPU: counts, digests, flags, a plan. Gradients go their own way.
"""

from __future__ import annotations

import builtins
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
Json = Any


class RanksDifferError(RuntimeError):
    """The processes of one launch hold different things where they must hold the same."""


class Ranks:
    """One process alone, which is also the base of `Launched`. Every method is called by all processes alike."""

    rank = 0
    world = 1

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes files and speaks."""
        return self.rank == 0

    def sum(self, counts: Tensor) -> Tensor:
        """The sum of a CPU tensor over all processes; of integers, so that no order of sums shows."""
        return counts

    def gather(self, value: Json) -> list[Json]:
        """Everybody's value, by rank. Plain JSON data."""
        return [value]

    def broadcast(self, value: Json) -> Json:
        """Rank 0's value. Plain JSON data."""
        return value

    def barrier(self) -> None:
        """Waits until everybody is here."""

    def first(self, function: Callable[[], T]) -> T:
        """Runs the function on rank 0 alone; its result, plain JSON data, or its error is everybody's."""
        return function()

    def each(self, function: Callable[[], T]) -> T:
        """Runs the function on every process; where one fails, all raise the error of the lowest of them."""
        return function()

    def check_same(self, what: str, value: Json) -> None:
        """`RanksDifferError` on every process unless all hold this value."""


# A process without companions.
ALONE = Ranks()


class Launched(Ranks):
    """The processes of an initialised torch.distributed group, over a gloo group of our own."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        # Apart from the group that carries gradients: on GPUs that one is NCCL's, and knows no CPU tensors.
        self._group = dist.new_group(backend="gloo")

    def sum(self, counts: Tensor) -> Tensor:
        dist.all_reduce(counts, group=self._group)
        return counts

    def gather(self, value: Json) -> list[Json]:
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.world, dtype=torch.int64)
        sizes[self.rank] = len(data)
        longest = int(self.sum(sizes).max())
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = data
        rows = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(rows, padded, group=self._group)
        return [json.loads(bytes(row[:size].numpy())) for row, size in zip(rows, sizes.tolist())]

    def broadcast(self, value: Json) -> Json:
        return self.gather(value if self.main else None)[0]

    def barrier(self) -> None:
        self.sum(torch.zeros(1))

    def first(self, function: Callable[[], T]) -> T:
        return cast(T, self._shared(function if self.main else lambda: None)[0])

    def each(self, function: Callable[[], T]) -> T:
        mine: list[T] = []
        self._shared(lambda: mine.append(function()))
        return mine[0]

    def check_same(self, what: str, value: Json) -> None:
        found = self.gather(value)
        others = [rank for rank, other in enumerate(found) if other != found[0]]
        if others:
            raise RanksDifferError(f"{what}: rank {', '.join(map(str, others))} differs from rank 0; nothing was saved")

    def _shared(self, function: Callable[[], Any]) -> Sequence[Any]:
        error: Exception | None = None
        said: dict[str, Any] = {}
        try:
            said["result"] = function()
        except Exception as caught:  # All must hear of it, whatever it is: they would wait for ever.
            error, said = caught, {"error": [kind.__name__ for kind in type(caught).__mro__], "text": str(caught)}
        everybody = self.gather(said)
        if error is not None:
            raise error
        for rank, other in enumerate(everybody):
            if "error" in other:
                raise _kind(other["error"])(f"{other['text']} (rank {rank})" if rank else other["text"])
        return [other["result"] for other in everybody]


def _kind(names: list[str]) -> type[Exception]:
    """The builtin error among a class and its bases: those are what callers tell apart."""
    found = (getattr(builtins, name, None) for name in names)
    return next(kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception))


@functools.cache
def _launched() -> Launched:
    return Launched()


def current() -> Ranks:
    """The processes of this launch; the first call makes their group, so that all must make it."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    return _launched()
