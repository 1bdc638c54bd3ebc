"""The order of a micro-batch's passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from sparseflow.hardware.wafer.layer import Layer, PassName


@dataclass(frozen=True)
class Turn:
    """One layer's passes, with the shares of the work on activations alone that come before and after them."""

    layer: Layer
    passes: tuple[PassName, ...]
    before: float = 0.0
    after: float = 0.0


def turns(layers: Sequence[Layer]) -> Iterator[Turn]:
    """Forward through all layers, and backward. Neighbours that occur equally often are a block, repeated as a whole.

    wgrad comes before dgrad, after which the layer's input may go; but the first layer's wgrad comes last of all.
    """
    order = [layer for count, block in groupby(layers, key=lambda one: one.count) for layer in list(block) * count]
    # A third of that work is forward's.
    share = 1 / (3 * len(order))
    for layer in order:
        yield Turn(layer, ("forward",), after=share)
    for place, layer in reversed(list(enumerate(order))):
        yield Turn(layer, ("wgrad", "dgrad") if place else ("dgrad", "wgrad"), before=2 * share)
