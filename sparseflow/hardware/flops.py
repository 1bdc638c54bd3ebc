"""FLOPs of a training step, counted and not measured: the products of the prunable layers, and nothing else.

A multiplication and an addition are two operations. Biases, norms, activations, attention scores, optimizer and layers
that cannot be pruned are left out: they cost the same at every density.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from sparseflow.hardware.plan import workloads
from sparseflow.hardware.sample import Sample


@dataclass(frozen=True)
class LayerFlops:
    """One layer's operations when dense: those of one product, and the products of a step: forward, dgrad, wgrad.

    A layer whose input needs no gradient has no dgrad.
    """

    product: float
    products: int

    @property
    def step(self) -> float:
        """Operations of one dense training step."""
        return self.product * self.products


def layer_flops(model: nn.Module, masks: Mapping[str, Tensor], sample: Sample) -> dict[str, LayerFlops]:
    """Dense name → the operations of each masked layer in one training step on the sample. The masks count as full.

    `sample` is an input batch of a step, as the model's forward takes it; it runs once, and nothing of it remains.
    """
    works = workloads(model, masks, sample)
    return {name: LayerFlops(works[name].product_flops, 3 if works[name].needs_dx else 2) for name in masks}


def step_flops(layers: Mapping[str, LayerFlops], kept: Mapping[str, int], total: Mapping[str, int]) -> float:
    """Operations of one training step that keeps so many weights of each layer: each product shrinks by its density."""
    return sum(layer.step * kept[name] / total[name] for name, layer in layers.items())


def example_flops(layers: Mapping[str, LayerFlops], kept: Mapping[str, int], total: Mapping[str, int]) -> float:
    """Operations of the forward pass of a step's batch, at that density."""
    return sum(layer.product * kept[name] / total[name] for name, layer in layers.items())
