"""Who of a launch is still alive: each rank shows a pulse and its phase in the store that the launch met at.

A rank that dies breaks the connections of the others, whose error names no rank. One that hangs breaks nothing until
a timeout. Here the others see whose pulse has stopped, and what it was doing when it did.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

# Seconds between beats, and without one until a rank counts as gone; a busy machine delays them.
_BEAT = 0.5
_GONE = 2.0

# How a rank may end: by itself, or because another one had.
WELL = "ended well"
FOLLOWED = "followed"


class Beat(NamedTuple):
    """The last sign of a rank: a counter, what it is doing, and how it ended, if it did."""

    number: int
    phase: str
    ended: str


class Lost(NamedTuple):
    """Ranks that are gone, in words, and whether this rank is the one to say so."""

    text: str
    speaks: bool


class Watch:
    """Shows this rank's pulse until closed."""

    def __init__(self, store: Store, rank: int, world: int, timeout: float) -> None:
        self._phase = "start"
        self._store, self._rank, self._world, self._timeout = store, rank, world, timeout
        self._count, self._ended = 0, ""
        self._closed = threading.Event()
        # Called, with the reason, where a rank has hung for longer than the timeout, by the rank that speaks.
        self.on_hang: Callable[[str], None] = lambda reason: None
        self._beat()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def phase(self) -> str:
        """What this rank is doing: what the others say of it should it die."""
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        self._phase = phase
        self._beat()

    def close(self, ended: str = WELL) -> None:
        """The last sign: how this rank ended."""
        self._closed.set()
        self._thread.join()
        self._ended = ended
        self._beat()
        if self._rank == 0:
            # The store may end with this process: the others get a moment to read what it says.
            deadline = time.monotonic() + _GONE
            while time.monotonic() < deadline and not all(beat.ended for beat in self._read()):
                time.sleep(_BEAT / 10)

    def lost(self) -> Lost | None:
        """After an error of a collective: which ranks are gone; None where all show a pulse. Takes up to `_GONE`."""
        before = now = self._read()
        deadline = time.monotonic() + _GONE
        while time.monotonic() < deadline:
            time.sleep(_BEAT)
            now = self._read()
            if all(b.ended or a.number != b.number for a, b in zip(before, now)):
                break
        gone = [rank for rank, (a, b) in enumerate(zip(before, now)) if rank != self._rank and _is_gone(a, b)]
        others = set(range(self._world)) - set(gone)
        return Lost(_describe(gone, now), min(others) == self._rank) if gone else None

    def main_says(self, text: str) -> bool:
        """Whether rank 0 ends with that error too, and so speaks for all; it gets a moment to come to it."""
        deadline = time.monotonic() + _GONE
        while time.monotonic() < deadline:
            main = self._read()[0]
            if main.ended or main.number < 0:
                return text in main.ended
            time.sleep(_BEAT / 5)
        return False

    def _run(self) -> None:
        seen = self._read()
        since = [time.monotonic()] * self._world
        while not self._closed.wait(_BEAT):
            self._beat()
            now = self._read()
            for rank in range(self._world):
                if now[rank].number != seen[rank].number or now[rank].ended:
                    since[rank] = time.monotonic()
            seen = now
            hung = [rank for rank, last in enumerate(since) if time.monotonic() - last > self._timeout]
            if hung and self._rank not in hung:
                self._end(_describe(hung, now), min(set(range(self._world)) - set(hung)) == self._rank)

    def _end(self, reason: str, speaks: bool) -> None:
        # The main thread waits for the rank that hangs, in a call that nothing interrupts.
        if speaks:
            self.on_hang(reason)
        os._exit(1)

    def _beat(self) -> None:
        self._count += 1
        with contextlib.suppress(RuntimeError):
            # The store may have gone with its rank.
            self._store.set(f"sparseflow/{self._rank}", json.dumps([self._count, self._phase, self._ended]))

    def _read(self) -> list[Beat]:
        return [self._read_one(f"sparseflow/{rank}") for rank in range(self._world)]

    def _read_one(self, key: str) -> Beat:
        try:
            return Beat(*json.loads(self._store.get(key))) if self._store.check([key]) else Beat(0, "start", "")
        except RuntimeError:
            return Beat(-1, "start", "")


def _is_gone(before: Beat, now: Beat) -> bool:
    return now.ended not in (WELL, FOLLOWED) if now.ended else before.number == now.number


def _describe(ranks: list[int], beats: list[Beat]) -> str:
    said = []
    for rank in ranks:
        beat = beats[rank]
        how = beat.ended or "died or hangs"
        said.append(f"rank {rank} {how} ({beat.phase})")
    return "; ".join(said)


def meet(timeout: float) -> tuple[Store, int, int]:
    """Meets the other processes where the launcher's environment says; the store, this rank, and how many there are."""
    limit = timedelta(seconds=timeout)
    store, rank, world = next(rendezvous("env://", timeout=limit))
    store.set_timeout(limit)
    return store, rank, world


def complain(text: str) -> None:
    """One line on standard error."""
    print(f"sparseflow: {' '.join(text.split())}", file=sys.stderr, flush=True)
