"""What must be on the wafer, and what in the store: bytes, and how large a micro-batch may be."""

from __future__ import annotations

from dataclasses import dataclass

from sparseflow.hardware.wafer.layer import Layer, Wafer, stream_bytes
from sparseflow.hardware.wafer.network import Network
from sparseflow.hardware.wafer.systems import Sourced

# Code, queues and buffers of a core. With it the published micro-batch of a 1.3B model, 132, just stays resident.
CODE_BYTES = Sourced(4_000, "calibrated: model zoo's micro-batch of the 1.3B model must fit without spilling")
_ACTIVATION_BYTES = 2
# Value and two moments of AdamW in 32 bits, and a 16-bit column index.
STORE_BYTES_A_WEIGHT = 14


@dataclass(frozen=True)
class Memory:
    """Bytes on one wafer during a step, and in the store. Modelled.

    `working` are the activations of the running layer, `streams` two buffers for the layer with the
    most bytes, `saved` what lives from forward to backward, of which `spilled` has no room. Streams and store have room
    for the schedule's highest density.
    """

    capacity: float
    working: float
    streams: float
    saved: float
    spilled: float
    store: float

    @property
    def resident(self) -> float:
        """Bytes on the wafer."""
        return self.working + self.streams + self.saved - self.spilled


def memory(network: Network, micro_batch: int, wafer: Wafer, densest: float | None = None) -> Memory:
    """The memory of a micro-batch. `densest` is the highest density that a schedule will have; by default today's."""
    capacity = wafer.system.cores * (wafer.system.core_bytes - CODE_BYTES)
    reserved = [_at_least(layer, densest) for layer in network.layers]
    working = micro_batch * max(_working_bytes(layer) for layer in network.layers)
    streams = 2 * max(stream_bytes(layer, wafer.kernel) for layer in reserved)
    saved = micro_batch * network.saved_bytes
    spilled = min(saved, max(0.0, working + streams + saved - capacity))
    store = sum(layer.count * layer.nnz for layer in reserved) * STORE_BYTES_A_WEIGHT
    return Memory(capacity, working, streams, saved, spilled, store)


def largest_micro_batch(network: Network, wafer: Wafer, spill: bool = True, densest: float | None = None) -> int:
    """The most samples whose activations a wafer holds, with or without spilling what is saved for backward.

    `ValueError` where not even one fits.
    """
    one, none = memory(network, 1, wafer, densest), memory(network, 0, wafer, densest)
    needed = one.working + (0 if spill else one.saved)
    most = int((none.capacity - none.streams) // needed)
    if most < 1:
        raise ValueError(
            f"one sample needs {needed + none.streams:,.0f} bytes on the wafer, {wafer.system.wafer} has "
            f"{none.capacity:,.0f}; shorten the sample or make the widest layer narrower"
        )
    return most


def check_micro_batch(network: Network, micro_batch: int, wafer: Wafer, densest: float | None = None) -> None:
    """Raises `ValueError` with both numbers where a micro-batch's working set exceeds the wafer."""
    most = largest_micro_batch(network, wafer, densest=densest)
    if micro_batch > most:
        found = memory(network, micro_batch, wafer, densest)
        raise ValueError(
            f"a micro-batch of {micro_batch} needs {found.working + found.streams:,.0f} bytes on the wafer, "
            f"{wafer.system.wafer} has {found.capacity:,.0f}; a micro-batch of {most} fits"
        )


def _working_bytes(layer: Layer) -> float:
    """A sample's input and output of a layer; in backward the output's gradient, and the input or its gradient."""
    outputs = layer.outputs if layer.whole_output else 0
    return layer.tokens * (layer.inputs + outputs) * _ACTIVATION_BYTES


def _at_least(layer: Layer, density: float | None) -> Layer:
    return layer if density is None or density <= layer.density else layer.at(density)
