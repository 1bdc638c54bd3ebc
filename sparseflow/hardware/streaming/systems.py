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
        """Gives a partial sum back and keeps it no longer; None where there is none."""
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
        self._rise(name, 0, number, gradient_Z, alone=False)

    def total(self, name: str) -> Tensor:
        """The sum over the passes that gave a gradient, of which there is one at least; kept on until it is dropped.

        What a missing pass would be added to goes up the tree as it is.
        """
        nodes = [(level, index) for level in range(self._height) for index in range(2 ** (self._height - level))]
        for level, index in nodes:
            mine = self._spilled.take(name, (level, index))
            if mine is not None:
                self._rise(name, level, index, mine, alone=True)
        total = self._spilled.take(name, (self._height, 0))
        assert total is not None, f"no gradient of {name!r} has come"
        self._spilled.put(name, (self._height, 0), total)
        return total

    def drop(self, name: str) -> None:
        """Forgets what came for a parameter."""
        self._spilled.drop(name)

    def _rise(self, name: str, level: int, index: int, total: Tensor, alone: bool) -> None:
        while level < self._height:
            other = self._spilled.take(name, (level, index ^ 1))
            if other is not None:
                total = total + other if index % 2 == 0 else other + total
            elif not alone:
                break
            level, index = level + 1, index // 2
            # Above, the other side may be there still.
            if alone:
                break
        self._spilled.put(name, (level, index), total)


class SpilledInMemory:
    """Keeps them in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[Node, Tensor]] = {}

    def put(self, name: str, node: Node, gradient_Z: Tensor) -> None:
        self._kept.setdefault(name, {})[node] = gradient_Z

    def take(self, name: str, node: Node) -> Tensor | None:
        return self._kept.get(name, {}).pop(node, None)

    def drop(self, name: str) -> None:
        self._kept.pop(name, None)


def _height(count: int) -> int:
    # Of the smallest binary tree with so many leaves.
    return (count - 1).bit_length()
