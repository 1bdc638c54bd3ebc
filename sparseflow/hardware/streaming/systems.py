"""Several systems and micro-batches: the gradients of a step's passes, added up in a tree of fixed shape.

A step has systems × micro_batches passes, one after another here: pass p is that of system p // micro_batches, so that
each system has consecutive micro-batches. The order of additions depends on the number of passes alone, and not on who
did them or when they came.
"""

from __future__ import annotations

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
        """Gives a partial sum back and keeps it no longer: a view until the next `put`; None where there is none."""
        ...

    def peek(self, name: str, node: Node) -> Tensor | None:
        """As `take`, but keeps it."""
        ...

    def drop(self, name: str) -> None:
        """Keeps none of the parameter's any longer."""
        ...


class TreeSums:
    """The gradients of one step, each parameter's added up as they come."""

    def __init__(self, passes: Passes, spilled: Spilled) -> None:
        self._height, self._spilled = _height(passes.count), spilled

    def add(self, name: str, number: int, gradient_Z: Tensor) -> None:
        """Takes the gradient of a pass."""
        level, index, total = 0, number, gradient_Z
        while (other := self._spilled.take(name, (level, index ^ 1))) is not None:
            level, index, total = level + 1, index // 2, total + other
        self._spilled.put(name, (level, index), total)

    def total(self, name: str) -> Tensor:
        """The sum over the passes that gave a gradient, of which there is one at least: a view until the next call.

        What a missing pass would be added to goes up the tree as it is.
        """
        for level in range(self._height):
            for index in range(2 ** (self._height - level)):
                if (mine := self._spilled.take(name, (level, index))) is not None:
                    other = self._spilled.take(name, (level, index ^ 1))
                    self._spilled.put(name, (level + 1, index // 2), mine if other is None else mine + other)
        total = self._spilled.peek(name, (self._height, 0))
        assert total is not None, f"no gradient of {name!r} has come"
        return total

    def drop(self, name: str) -> None:
        """Forgets what came for a parameter."""
        self._spilled.drop(name)


def _height(count: int) -> int:
    # Of the smallest binary tree with so many leaves.
    return (count - 1).bit_length()
