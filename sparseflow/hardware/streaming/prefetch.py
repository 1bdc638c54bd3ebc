"""The next unit is read while this one computes: a thread, and two buffers.

A unit is what is used together, such as the parameters of one module. The order of units is learned from the first
pass of a phase, and every later pass of it corrects what was learned.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

Unit = TypeVar("Unit", bound=Hashable)
Buffer = TypeVar("Buffer")


class Prefetcher(Generic[Unit, Buffer]):
    """Fills buffers with units. `fill(unit, buffer)` reads one; it may be called on another thread, once at a time.

    ahead: whether to read the next unit early at all; the figures of both are the same.
    """

    def __init__(self, fill: Callable[[Unit, Buffer], None], buffers: tuple[Buffer, Buffer], ahead: bool = True) -> None:
        pass
