"""Data order: which examples a step sees, as a pure function of (seed, step)."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from sparseflow.training.seeds import derive


class Order:
    """Batches of a shuffled epoch without its incomplete last one; each epoch has a permutation of its own."""

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= examples:
            raise ValueError(f"batch_size: expected 1 to {examples}, the training examples, got {batch_size}")
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    @property
    def steps_per_epoch(self) -> int:
        return self.examples // self.batch_size

    def indices(self, step: int) -> Tensor:
        """int64 indices (batch_size,) of the step's examples."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
            self._permutation = torch.randperm(self.examples, generator=generator)
            self._epoch = epoch
        return self._permutation[position * self.batch_size : (position + 1) * self.batch_size]

    def digest(self, first: int, last: int) -> str:
        """sha256 over the indices of the steps [first, last): equal where the same examples were seen in that order."""
        sha = hashlib.sha256()
        for step in range(first, last):
            sha.update(self.indices(step).numpy().data)
        return sha.hexdigest()
