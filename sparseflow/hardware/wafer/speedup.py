"""How much faster a modelled step gets as a network gets sparser, and what keeps it from more."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sparseflow.hardware.wafer.layer import Wafer
from sparseflow.hardware.wafer.network import Network
from sparseflow.hardware.wafer.step import Prediction, predict
from sparseflow.hardware.wafer.systems import Sourced


@dataclass(frozen=True)
class Speedup:
    """Dense over sparse at one density: the whole `step`; its pruned `layers` alone, reductions not hidden, and
    `overlapped`, all of them hidden; the same layers bound by nothing but the `ports`. No more than 1 / density.
    """

    density: float
    step: float
    layers: float
    overlapped: float
    ports: float


def speedups(network: Network, batch: int, wafer: Wafer, densities: Iterable[float], systems: int = 1) -> list[Speedup]:
    """The curve over densities of the network's prunable layers, with random masks. `ValueError` as `predict`."""
    hidden = replace(wafer, kernel=replace(wafer.kernel, overlap=Sourced(1, "assumed: the other end of what may be")))
    base, base_hidden = (predict(network.at(1.0), batch, one, systems=systems) for one in (wafer, hidden))
    found = []
    for density in densities:
        sparse, sparse_hidden = (predict(network.at(density), batch, one, systems=systems) for one in (wafer, hidden))
        found.append(
            Speedup(
                density,
                base.seconds / sparse.seconds,
                _pruned(base) / _pruned(sparse),
                _pruned(base_hidden) / _pruned(sparse_hidden),
                _pruned(base) / _ports(sparse),
            )
        )
    return found


def _pruned(step: Prediction) -> float:
    return step.micro_batches * sum(count * one.seconds for count, one in step.passes if one.layer in _names(step))


def _ports(step: Prediction) -> float:
    return step.micro_batches * sum(count * one.io for count, one in step.passes if one.layer in _names(step))


def _names(step: Prediction) -> set[str]:
    return {layer.name for layer in step.network.layers if layer.prunable}
