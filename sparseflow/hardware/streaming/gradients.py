"""Gradients of several systems and micro-batches become one, by a tree whose shape depends on their number alone.

So one system with four micro-batches and four with one come to the same bits, in whatever order they finish. What has
to wait, partial sums or whole gradients, lies beside the store, on its disk if it has one. Shapes: Z kept values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow.hardware.streaming.slots import PAGE, Pages
from sparseflow.hardware.streaming.store import Store
from sparseflow.hardware.streaming.tiles import VALUE


def reduction_order(leaves: int) -> str:
    """How so many gradients are added up, such as `(((0+1)+(2+3))+4)`: neighbours first; who has none waits a round."""
    sums = [str(leaf) for leaf in range(leaves)]
    while len(sums) > 1:
        pairs = [f"({left}+{right})" for left, right in zip(sums[::2], sums[1::2])]
        sums = pairs + sums[2 * len(pairs) :]
    return sums[0]


@dataclass(frozen=True)
class _Node:
    """The sum of 2**level leaves, or of as many as there are; `index` counts those of its level."""

    level: int
    index: int

    @property
    def sibling(self) -> _Node:
        return _Node(self.level, self.index ^ 1)

    @property
    def parent(self) -> _Node:
        return _Node(self.level + 1, self.index // 2)


class Gradients:
    """The gradients of one step, of so many leaves each: leaf = system * micro-batches + micro-batch."""

    def __init__(self, store: Store, leaves: int) -> None:
        self.leaves = leaves
        self._store = store
        self._waiting: dict[str, dict[_Node, Pages]] = {}
        self._totals: dict[str, Pages] = {}
        self._free: dict[tuple[str, int], list[Pages]] = {}

    def add(self, name: str, leaf: int, gradient_Z: Tensor) -> Tensor | None:
        """The sum of all leaves with the last of them, else None. It takes the gradient over, and writes into it."""
        assert 0 <= leaf < self.leaves, f"{name}: leaf {leaf} of {self.leaves}"
        node, waiting = _Node(0, leaf), self._waiting.setdefault(name, {})
        while self._width(node.level) > 1:
            if self._has_sibling(node):
                other = waiting.pop(node.sibling, None)
                if other is None:
                    assert node not in waiting, f"{name}: leaf {leaf} came twice"
                    waiting[node] = self._spill(name, gradient_Z)
                    return None
                self._add_to(gradient_Z, name, other)
            node = node.parent
        del self._waiting[name]
        return gradient_Z

    def finish(self, name: str) -> Tensor | None:
        """The sum of those leaves that have come, in the same order, where some never will; None where none has."""
        waiting = self._waiting.pop(name, {})
        while len(waiting) > 1:
            node = min(waiting, key=lambda node: (node.level, node.index))
            pages = waiting.pop(node)
            if other := waiting.pop(node.sibling, None):
                total = self._view(name, pages).clone()
                self._release(name, pages)
                self._add_to(total, name, other)
                pages = self._spill(name, total)
            waiting[node.parent] = pages
        for pages in waiting.values():
            self._release(name, pages)
            return self._view(name, pages).clone()
        return None

    def keep(self, name: str, total_Z: Tensor) -> None:
        """Puts a whole gradient aside, as where its norm must be known before any is used."""
        assert name not in self._totals, f"the gradient of {name} is kept already"
        self._totals[name] = self._spill(name, total_Z)

    def kept(self) -> Iterator[tuple[str, Tensor]]:
        """Those that were put aside, in that order: views until `clear`, only to be read."""
        for name, pages in self._totals.items():
            yield name, self._view(name, pages)

    def clear(self) -> None:
        """Drops all that waits, and what was put aside."""
        for name, waiting in self._waiting.items():
            self._release(name, *waiting.values())
        for name, pages in self._totals.items():
            self._release(name, pages)
        self._waiting, self._totals = {}, {}

    def close(self) -> None:
        """Takes everything off the disk."""
        self.clear()
        for free in self._free.values():
            for pages in free:
                pages.remove()
        self._free = {}

    def _width(self, level: int) -> int:
        return -(-self.leaves // 2**level)

    def _has_sibling(self, node: _Node) -> bool:
        return node.sibling.index < self._width(node.level)

    def _spill(self, name: str, gradient_Z: Tensor) -> Pages:
        nnz = self._store.nnz(name)
        assert gradient_Z.shape == (nnz,), f"{name}: {nnz} weights are kept, the gradient has {tuple(gradient_Z.shape)}"
        free = self._free.setdefault((name, nnz), [])
        pages = free.pop() if free else self._store.scratch(max(PAGE, nnz * VALUE))
        pages.write(0, gradient_Z)
        self._store.traffic.add(written=gradient_Z.nbytes)
        return pages

    def _view(self, name: str, pages: Pages) -> Tensor:
        nnz = self._store.nnz(name)
        self._store.traffic.add(read=nnz * VALUE)
        return pages.view(0, nnz, torch.float32)

    def _add_to(self, total_Z: Tensor, name: str, pages: Pages) -> None:
        total_Z.add_(self._view(name, pages))
        self._release(name, pages)

    def _release(self, name: str, *pages: Pages) -> None:
        self._free.setdefault((name, self._store.nnz(name)), []).extend(pages)
