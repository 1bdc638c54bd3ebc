"""Two buffers through which all weights go: one computes while the other is filled with what comes next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import dlpack

# Numbers: filling takes longer than two threads of Python waiting for each other.
_WORTH_A_THREAD = 2**17

# Fills a buffer with a unit's numbers.
Fill = Callable[[str, Tensor], None]


@dataclass(eq=False)
class _Buffer:
    """unit: what lies in it, if anything. Each time it is lent under a storage of its own, whose end is the loan's."""

    memory: Tensor
    unit: str | None = None
    filling: Future[None] | None = None
    loans: list[StorageWeakRef] = field(default_factory=list)

    def busy(self) -> bool:
        self.loans = [loan for loan in self.loans if not loan.expired()]  # type: ignore[no-untyped-call]
        return bool(self.loans)

    def lend(self) -> Tensor:
        self.filled()
        # In a capsule, since from_dlpack would ask any other about accelerators first.
        loan = dlpack.from_dlpack(dlpack.to_dlpack(self.memory))  # type: ignore[attr-defined]
        end = StorageWeakRef(loan.untyped_storage())  # type: ignore[no-untyped-call]
        self.loans.append(end)
        return loan

    def filled(self) -> None:
        """Waits for what is being read into it. OSError and the like where that failed."""
        filling, self.filling = self.filling, None
        if filling is not None:
            try:
                filling.result()
            except BaseException:
                self.unit = None
                raise

    def clear(self) -> None:
        self.filled()
        self.unit = None


class Buffers:
    """Two, each as long as the longest unit. What nobody holds any more makes room for the next unit.

    units: how many numbers each has. fill: called for one unit at a time; with `ahead`, from a thread of its own where
    the order of the units is known already: the order of one pass in one direction is expected of the next.
    """

    def __init__(self, units: Mapping[str, int], device: torch.device, fill: Fill, ahead: bool = True) -> None:
        longest = max([1, *units.values()])
        # The one that was lent longest ago comes first.
        self._buffers = [_Buffer(torch.empty(longest, device=device)) for _ in range(2)]
        self._units, self._fill, self._ahead = units, fill, ahead
        self._thread: ThreadPoolExecutor | None = None
        self._seen: list[str] = []
        self._expected: dict[str, list[str]] = {}
        self._direction = ""

    @property
    def nbytes(self) -> int:
        """Of both."""
        return sum(buffer.memory.nbytes for buffer in self._buffers)

    def begin(self, direction: str) -> None:
        """What lies in the buffers is streamed again; the units asked for from here on are one pass of that name."""
        if self._seen:
            self._expected[self._direction] = self._seen
        self._direction, self._seen = direction, []
        self.clear()

    def clear(self) -> None:
        """What lies in the buffers is out of date."""
        for buffer in self._buffers:
            buffer.clear()

    def close(self) -> None:
        """Waits for the thread and ends it."""
        self.clear()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def unit_at(self, address: int) -> str | None:
        """The unit in the buffer that begins at this address."""
        return next((buffer.unit for buffer in self._buffers if buffer.memory.data_ptr() == address), None)

    def lend(self, unit: str) -> Tensor:
        """The unit's numbers; the buffer is taken as long as somebody holds a view of them.

        `RuntimeError` that names what both buffers hold where none is free.
        """
        return self._asked(unit).lend()

    def ask(self, unit: str) -> None:
        """As `lend`, for a unit that is used where it lies: no buffer is taken."""
        self._asked(unit)

    def _asked(self, unit: str) -> _Buffer:
        buffer = self._holding(unit)
        if buffer is None:
            buffer = self._free(unit)
            buffer.clear()
            self._fill(unit, buffer.memory)
            buffer.unit = unit
        self._buffers.sort(key=lambda one: one is buffer)
        if not self._seen or self._seen[-1] != unit:
            self._seen.append(unit)
            if self._ahead:
                self._read_ahead()
        return buffer

    def _holding(self, unit: str) -> _Buffer | None:
        return next((buffer for buffer in self._buffers if buffer.unit == unit), None)

    def _free(self, unit: str) -> _Buffer:
        free = [buffer for buffer in self._buffers if not buffer.busy()]
        if not free:
            held = " and ".join(repr(buffer.unit) for buffer in self._buffers)
            raise RuntimeError(
                f"the weights of {unit!r} are asked for while those of {held} are still in use, and a streamed model "
                "has two buffers; let the model give up a weight before it takes a third"
            )
        return free[0]

    def _read_ahead(self) -> None:
        expected, place = self._expected.get(self._direction, []), len(self._seen)
        # A pass that goes another way than the last one is not guessed about.
        if len(expected) <= place or expected[place - 1] != self._seen[-1]:
            return
        following = expected[place]
        if self._units[following] < _WORTH_A_THREAD:
            return
        free = [buffer for buffer in self._buffers if not buffer.busy()]
        if not free or self._holding(following) is not None:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "sparseflow-stream")
        buffer = free[0]
        buffer.clear()
        buffer.filling = self._thread.submit(self._fill_on, self._cuda_stream(), following, buffer.memory)
        buffer.unit = following

    def _cuda_stream(self) -> torch.cuda.Stream | None:
        device = self._buffers[0].memory.device
        return torch.cuda.current_stream(device) if device.type == "cuda" else None

    def _fill_on(self, stream: torch.cuda.Stream | None, unit: str, memory: Tensor) -> None:
        # In the order of the kernels that may still read what this overwrites.
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            self._fill(unit, memory)
