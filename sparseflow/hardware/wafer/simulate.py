"""An event simulation of a small grid of cores, to check the closed forms of `layer` cycle by cycle.

Weights enter a line of cores at its first column and are handed on, one hop a cycle, leaving a copy in each core's
queue. A core runs one AXPY a weight, as weights arrive. After a row's last weight it adds its partial sum to the one
from the line above and passes the sum on, word by word. Queues and buffers are finite: whoever finds the next one full
waits. For the gradient of the weights a core computes a dot product instead, and sums run along the line.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from sparseflow.hardware.wafer.kernel import Kernel

LARGEST = 64
_ENTER, _COMPUTED, _ADDED, _PARTIAL, _SCALAR = range(5)


@dataclass(frozen=True)
class Simulated:
    """What a pass took, in cycles. `busy` and `stalled` are those of each core, (lines, columns): computing, and
    waiting between its first and its last work. `hops` counts wavelets that went from one core to the next.
    """

    cycles: float
    busy: NDArray[np.float64]
    stalled: NDArray[np.float64]
    wavelets: int
    hops: int


def simulate(
    counts: NDArray[np.int64],
    columns: int,
    tokens: int,
    fmacs: int,
    wavelets_per_cycle: float = inf,
    kernel: Kernel | None = None,
    gradient: bool = False,
) -> Simulated:
    """One pass of a layer over `tokens` tokens; `counts` (rows, lines) are the weights of each row on each line.

    `gradient`: the pass that computes the weights' gradient, else forward or dgrad (with the counts of the transposed
    weight). `ValueError` for a grid of more than 64 lines or columns, and for an overlap other than 0 or 1.
    """
    kernel = kernel or Kernel()
    lines = counts.shape[1]
    if not (0 < lines <= LARGEST and 0 < columns <= LARGEST):
        raise ValueError(f"expected a grid of 1 to {LARGEST} lines and columns, got {lines} × {columns}")
    if float(kernel.overlap) not in (0.0, 1.0):
        raise ValueError(f"the simulation overlaps a reduction wholly or not: expected 0 or 1, got {kernel.overlap:g}")
    return _Grid(counts, columns, tokens, fmacs, wavelets_per_cycle, kernel, gradient).run()


class _Core:
    """One core's state. A queue holds row numbers; `~row` is the command that ends the row."""

    __slots__ = (
        "above",
        "add",
        "adding",
        "axpy",
        "below",
        "busy",
        "computing",
        "ended",
        "first",
        "incoming",
        "last",
        "left",
        "link",
        "partials",
        "queue",
        "reduced",
        "right",
        "scalars",
    )  # fmt: skip

    def __init__(self, axpy: int, add: int) -> None:
        self.axpy, self.add = axpy, add
        self.above: _Core | None = None
        self.below: _Core | None = None
        self.left: _Core | None = None
        self.right: _Core | None = None
        self.queue: deque[int] = deque()
        # What the link brings, and since when it is here.
        self.link: tuple[int, float] | None = None
        self.computing = self.adding = False
        # Rows whose weights are done, and rows whose partial sums have gone on.
        self.ended = self.reduced = 0
        # Partial sums from above: those announced, which occupy a buffer, and those that are here.
        self.incoming = self.partials = self.scalars = 0
        self.busy = self.last = 0.0
        self.first = inf


class _Grid:
    def __init__(
        self,
        counts: NDArray[np.int64],
        columns: int,
        tokens: int,
        fmacs: int,
        wavelets_per_cycle: float,
        kernel: Kernel,
        gradient: bool,
    ) -> None:
        self.kernel, self.gradient = kernel, gradient
        self.lines, self.columns = counts.shape[1], columns
        self.rows = 0 if gradient else counts.shape[0]
        self.depth, self.buffers = int(kernel.queue), int(kernel.rows)
        # One server for AXPYs and reductions, or one each.
        self.shared = float(kernel.overlap) == 0.0
        self.cores = _connected(self.lines, columns, tokens, fmacs, kernel)
        self.streams = _streams(counts, wavelets_per_cycle, commands=not gradient)
        self.wavelets = sum(len(stream) for stream in self.streams)
        self.events: list[tuple[float, int, int, _Core]] = []
        self.order = self.hops = 0

    def run(self) -> Simulated:
        """Handles events in order of time until none is left."""
        self.first = {id(self.cores[line * self.columns]): self.streams[line] for line in range(self.lines)}
        for line in range(self.lines):
            self._send(self.cores[line * self.columns], -1.0)
        handlers = (self._enter, self._computed, self._added, self._partial, self._scalar)
        while self.events:
            now, _, kind, core = heapq.heappop(self.events)
            handlers[kind](core, now)
        assert all(core.reduced == self.rows and not core.queue for core in self.cores)
        shape = (self.lines, self.columns)
        busy = np.array([core.busy for core in self.cores])
        stalled = np.array([core.last - core.first - core.busy if core.busy else 0.0 for core in self.cores])
        cycles = max(core.last for core in self.cores)
        return Simulated(cycles, busy.reshape(shape), stalled.reshape(shape), self.wavelets, self.hops)

    def _at(self, time: float, kind: int, core: _Core) -> None:
        self.order += 1
        heapq.heappush(self.events, (time, self.order, kind, core))

    def _send(self, core: _Core, now: float) -> None:
        """Puts the line's next wavelet on its first link, a cycle after the last one."""
        stream = self.first[id(core)]
        if stream:
            item, available = stream.popleft()
            here = max(available, now + 1)
            core.link = (item, here)
            self._at(here, _ENTER, core)

    def _enter(self, core: _Core, now: float) -> None:
        """Takes what the link holds into the queue and hands it on, if both have room."""
        right = core.right
        if core.link is None or core.link[1] > now or len(core.queue) >= self.depth:
            return
        if right is not None and right.link is not None:
            return
        item = core.link[0]
        core.link = None
        core.queue.append(item)
        if right is not None:
            right.link = (item, now + 1)
            self.hops += 1
            self._at(now + 1, _ENTER, right)
        if core.left is None:
            self._send(core, now)
        else:
            self._enter(core.left, now)
        self._work(core, now)

    def _work(self, core: _Core, now: float) -> None:
        """Starts what the core can do: a reduction before an AXPY."""
        queue = core.queue
        while queue and queue[0] < 0 and not core.computing:
            core.ended = ~queue.popleft() + 1
            self._enter(core, now)
        if core.reduced < core.ended and not core.adding and not (self.shared and core.computing):
            self._reduce(core, now)
        if core.computing or (self.shared and core.adding) or not queue:
            return
        if queue[0] < 0 or (not self.gradient and queue[0] >= core.reduced + self.buffers):
            return
        if self.gradient and core.left is not None:
            if not core.scalars:
                return
            core.scalars -= 1
        queue.popleft()
        core.computing = True
        self._spend(core, now, core.axpy, _COMPUTED)
        self._enter(core, now)

    def _reduce(self, core: _Core, now: float) -> None:
        """Adds the partial sum from above, if it is here, and passes on the sum, if the core below has a buffer."""
        if core.above is not None and not core.partials:
            return
        if core.below is not None:
            if core.below.incoming >= self.buffers:
                return
            core.below.incoming += 1
            # The first word goes on as soon as it is added; the rest follows one a cycle.
            self._at(now + self.kernel.reduce_cycles + 1, _PARTIAL, core.below)
        if core.above is not None:
            core.partials -= 1
        core.adding = True
        self._spend(core, now, core.add, _ADDED)

    def _spend(self, core: _Core, now: float, cycles: int, kind: int) -> None:
        core.busy += cycles
        core.first = min(core.first, now)
        core.last = now + cycles
        self._at(core.last, kind, core)

    def _computed(self, core: _Core, now: float) -> None:
        core.computing = False
        if self.gradient and core.right is not None:
            self._at(now + 1, _SCALAR, core.right)
        self._work(core, now)

    def _added(self, core: _Core, now: float) -> None:
        core.adding = False
        core.reduced += 1
        if core.above is not None:
            core.incoming -= 1
            self._work(core.above, now)
        self._work(core, now)

    def _partial(self, core: _Core, now: float) -> None:
        core.partials += 1
        self._work(core, now)

    def _scalar(self, core: _Core, now: float) -> None:
        core.scalars += 1
        self._work(core, now)


def _connected(lines: int, columns: int, tokens: int, fmacs: int, kernel: Kernel) -> list[_Core]:
    """The cores line by line; the first columns hold one token more where they do not divide evenly."""
    cores: list[_Core] = []
    for line in range(lines):
        for column in range(columns):
            held = tokens // columns + (column < tokens % columns)
            axpy = max(1, int(kernel.task_cycles) + ceil(held / fmacs))
            core = _Core(axpy, int(kernel.reduce_cycles) + ceil(held / kernel.adds))
            if column:
                core.left, cores[-1].right = cores[-1], core
            if line:
                core.above = cores[len(cores) - columns]
                core.above.below = core
            cores.append(core)
    return cores


def _streams(counts: NDArray[np.int64], wavelets_per_cycle: float, commands: bool) -> list[deque[tuple[int, float]]]:
    """Each line's wavelets and when the wafer's ports have brought them, which they do row by row."""
    streams: list[deque[tuple[int, float]]] = [deque() for _ in range(counts.shape[1])]
    sent = 0
    for row, in_row in enumerate(counts.tolist()):
        for line, count in enumerate(in_row):
            for _ in range(count):
                streams[line].append((row, sent / wavelets_per_cycle))
                sent += 1
        if commands:
            # One wavelet brings the command, and the fabric takes it to all lines.
            for stream in streams:
                stream.append((~row, sent / wavelets_per_cycle))
            sent += 1
    return streams
