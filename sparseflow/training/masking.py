"""Masks that change in training: a method of `masks.dynamic` at work on a model, between its gradients and its step.

Dense weights, and dense gradients where the method wants them, are there on update steps alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sparseflow.hardware.dense_gradient import DenseGradient
from sparseflow.hardware.model import current_masks, dense_weights, sparse_layers
from sparseflow.masks import criteria
from sparseflow.masks.criteria import Scores
from sparseflow.masks.dynamic import Dynamic
from sparseflow.masks.masks import Masks
from sparseflow.ranks import Ranks


class Masking:
    """One dynamic method on one model, on every rank of a launch alike."""

    def __init__(self, method: Dynamic, seed: int, ranks: Ranks) -> None:
        self.method, self._seed, self._ranks = method, seed, ranks

    @contextmanager
    def gradients(self, step: int, model: nn.Module) -> Iterator[dict[str, DenseGradient]]:
        """Inside, backward passes add up the dense gradients, by dense name, where this step's update wants them."""
        layers = sparse_layers(model) if self.method.due(step) and self.method.uses_gradients else {}
        found = {name: DenseGradient(layer) for name, layer in layers.items()}
        try:
            for name, layer in layers.items():
                layer.dense_gradient = found[name]
            yield found
        finally:
            for layer in layers.values():
                layer.dense_gradient = None

    def update(self, step: int, model: nn.Module, found: Mapping[str, DenseGradient]) -> Masks | None:
        """The new masks where they change in this step, the same on all ranks; None where they do not.

        Nor do they where a gradient overflowed, as a loss scale that is too high makes it.
        """
        if not self.method.due(step):
            return None
        gradients = self._averaged(found) if self.method.uses_gradients else None
        if gradients is not None and not all(map(_finite, gradients.values())):
            return None
        with torch.no_grad():
            masks = current_masks(model)
            weights = {name: weight for name, weight in dense_weights(model).items() if name in masks}
            return self.method.update(step, weights, masks, gradients, self._seed)

    def _averaged(self, found: Mapping[str, DenseGradient]) -> dict[str, Tensor]:
        totals = {name: _total(one) for name, one in found.items()}
        return dict(criteria.averaged(Scores(totals, absolute=True), self._ranks).tensors)


def _finite(tensor: Tensor) -> bool:
    # A sum, quickly made, is finite only where all are; it may overflow where they are too.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _total(gradient: DenseGradient) -> Tensor:
    # A layer that this step's loss does not reach has none.
    return torch.zeros(gradient.shape, dtype=gradient.dtype) if gradient.total is None else gradient.total
