"""What a step needs to know of a model: its weight matrices, and what happens beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from sparseflow.hardware.wafer.layer import Layer
from sparseflow.hardware.workload import Workload

ACTIVATION_BYTES = 2


@dataclass(frozen=True)
class Network:
    """A model. `dense_flops` are a sample's operations on activations alone, forward and backward: attention scores.
    `saved_bytes` of a sample's activations live from forward to backward.
    """

    layers: tuple[Layer, ...]
    dense_flops: float = 0.0
    saved_bytes: float = 0.0

    def at(self, density: float, imbalance: float | None = None) -> Network:
        """The same with its prunable layers at another density."""
        return replace(self, layers=tuple(layer.at(density, imbalance) for layer in self.layers))

    def to_json(self) -> dict[str, Any]:
        """Plain data, from which `Network.from_json` makes the same."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Network:
        """The network of `to_json`. `ValueError` or `TypeError` for other data."""
        return cls(tuple(Layer(**layer) for layer in data["layers"]), data["dense_flops"], data["saved_bytes"])


def network_of(works: Mapping[str, Workload], samples: int) -> Network:
    """The network of layers that work on `samples` samples a step, as a plan saw them; it saves every layer's input.

    A convolution is the product over all its output pixels. `ValueError` where nobody has looked how many rows a layer
    sees, or there is no layer.
    """
    if not works:
        raise ValueError("expected the workload of at least one layer, got none")
    unseen = [name for name, work in works.items() if work.positions < 1]
    if unseen:
        raise ValueError(f"the rows of {', '.join(unseen)} are unknown; plan with a sample first")
    layers = tuple(layer_of(name, work, samples) for name, work in works.items())
    saved = sum(layer.tokens * layer.inputs * ACTIVATION_BYTES for layer in layers)
    return Network(layers, saved_bytes=saved)


def layer_of(name: str, work: Workload, samples: int = 1) -> Layer:
    """One layer of so many samples a step."""
    tokens = max(1, work.positions // samples)
    return Layer(name, work.shape[0], prod(work.shape[1:]), work.density, tokens=tokens)
