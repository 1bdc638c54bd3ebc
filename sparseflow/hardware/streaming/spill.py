"""Gradients that have to wait, whole ones or partial sums, beside the store: on its disk if it has one.

They are no part of a commit: with the process they are gone. Shapes: Z kept values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseflow.hardware.streaming.slots import PAGE, Pages
from sparseflow.hardware.streaming.store import Store
from sparseflow.hardware.streaming.tiles import VALUE

# Of the tree that adds gradients up: its level, and which one there.
Node = tuple[int, int]


class Spill:
    """Keeps gradients by parameter and node. What is dropped or taken makes room for the next of its length."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[str, dict[Node, tuple[int, Pages]]] = {}
        self._free: dict[int, list[Pages]] = {}
        # Of the views that `take` has given, which must not be written to.
        self._lent: list[tuple[int, Pages]] = []

    def put(self, name: str, node: Node, gradient_Z: Tensor) -> None:
        """Keeps a gradient. OSError where the disk is full."""
        kept = self._kept.setdefault(name, {})
        assert node not in kept, f"{name}: there is a gradient at {node} already"
        nnz = gradient_Z.numel()
        free = self._free.get(nnz)
        pages = free.pop() if free else self._store.scratch(max(PAGE, nnz * VALUE))
        pages.write(0, gradient_Z)
        self._store.traffic.add(written=gradient_Z.nbytes)
        kept[node] = nnz, pages
        self._take_back()

    def take(self, name: str, node: Node) -> Tensor | None:
        """Gives one back and keeps it no longer: a view until the next `put`, only to be read; None: there is none."""
        if (found := self._kept.get(name, {}).pop(node, None)) is None:
            return None
        self._lent.append(found)
        nnz, pages = found
        self._store.traffic.add(read=nnz * VALUE)
        return pages.view(0, nnz, torch.float32)

    def peek(self, name: str, node: Node) -> Tensor | None:
        """As `take`, but keeps it: a view until it is taken or dropped."""
        if (found := self._kept.get(name, {}).get(node)) is None:
            return None
        nnz, pages = found
        self._store.traffic.add(read=nnz * VALUE)
        return pages.view(0, nnz, torch.float32)

    def drop(self, name: str) -> None:
        """Keeps none of the parameter's any longer."""
        self._lent += self._kept.pop(name, {}).values()

    def close(self) -> None:
        """Takes everything off the disk."""
        for name in list(self._kept):
            self.drop(name)
        self._take_back()
        for free in self._free.values():
            for pages in free:
                pages.remove()
        self._free = {}

    def _take_back(self) -> None:
        for nnz, pages in self._lent:
            self._free.setdefault(nnz, []).append(pages)
        self._lent = []
