"""Several systems and micro-batches: the gradients of a step's passes, added up in a tree of fixed shape.

A step has systems × micro_batches passes, one after another here: pass p is that of system p // micro_batches, so that
each system has consecutive micro-batches. The order of additions depends on the number of passes alone, and not on who
did them or when they came.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

# Level 0 has the passes; node i of a level adds up the nodes 2i and 2i + 1 of the level below.
Node = tuple[int, int]


@dataclass(frozen=True)
class Passes:
    """How a step is divided. `ValueError` for less than one of either."""

    systems: int = 1
    micro_batches: int = 1

    def __post_init__(self) -> None:
        if self.systems < 1 or self.micro_batches < 1:
            raise ValueError(
                f"expected at least one system and one micro-batch, got systems={self.systems} and "
                f"micro_batches={self.micro_batches}"
            )

    @property
    def count(self) -> int:
        """Of a step."""
        return self.systems * self.micro_batches

    def system(self, number: int) -> int:
        """Which system does this pass."""
        return number // self.micro_batches

    @property
    def order(self) -> list[tuple[Node, Node]]:
        """The additions, as (left, right) nodes: first a level's, then the next level's, each from the left."""
        found, width = [], self.count
        for level in range(_height(self.count)):
            found += [((level, i), (level, i + 1)) for i in range(0, width - 1, 2)]
            width = -(-width // 2)
        return found


class Spilled(Protocol):
    """Where partial sums wait for the others."""

    def put(self, name: str, node: Node, gradient_Z: Tensor) -> None:
        """Keeps a partial sum."""
        ...

    def take(self, name: str, node: Node) -> Tensor | None:
        """Gives a partial sum back and keeps it no longer; None where there is none."""
        ...


class TreeSums:
    """The gradients of one step, each parameter's added up as they come."""

    def __init__(self, passes: Passes, spilled: Spilled) -> None:
        self._height, self._spilled = _height(passes.count), spilled

    def add(self, name: str, number: int, gradient_Z: Tensor) -> None:
        """Takes the gradient of a pass."""
        level, index, total = 0, number, gradient_Z
        while level < self._height:
            other = self._spilled.take(name, (level, index ^ 1))
            if other is None:
                break
            total = total + other if index % 2 == 0 else other + total
            level, index = level + 1, index // 2
        self._spilled.put(name, (level, index), total)

    def total(self, name: str) -> Tensor | None:
        """The sum over the passes that there were; it goes on being kept as long as nobody takes it. None: no gradient.

        Where a pass gave none, what the other side of its addition has stands alone.
        """
        partial = {node: self._spilled.take(name, node) for node in self._nodes()}
        for level in range(self._height):
            for index in {index for at, index in partial if at == level}:
                mine = partial.pop((level, index))
        raise NotImplementedError
