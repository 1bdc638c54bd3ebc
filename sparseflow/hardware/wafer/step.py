"""A whole training step on one or several wafers, modelled: `predict`.

A step is, for each micro-batch, forward through all layers and backward through all again, with attention scores and
the like between; then the bubble in which the store finishes its updates, and a fixed time. Everything else that the
store and the tree between systems do is hidden behind the layers, except where wafer I/O binds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log

from sparseflow.hardware.wafer.energy import Energy, energy
from sparseflow.hardware.wafer.layer import Grid, Layer, Limit, Pass, Wafer
from sparseflow.hardware.wafer.mapping import CountedPasses, fastest, grids
from sparseflow.hardware.wafer.memory import Memory, check_micro_batch, largest_micro_batch, memory
from sparseflow.hardware.wafer.network import Network
from sparseflow.hardware.wafer.order import turns
from sparseflow.hardware.wafer.systems import Sourced

TREE_SECONDS = Sourced(1e-5, "assumed: one level of the broadcast and reduction tree, four ways wide")
UPDATE_BYTES = Sourced(28, "derived: AdamW reads a gradient, reads and writes a value and two moments, 32 bits each")


@dataclass(frozen=True)
class Prediction:
    """What a step would take: modelled, never measured. Seconds, bytes and joules of a step.

    `passes` are those of one micro-batch, each with how often it occurs; `attention` is its work on activations alone;
    `spill` what moving saved activations adds; `bubble` what the store has not updated when the last pass ends.
    """

    wafer: Wafer
    network: Network
    grid: Grid
    systems: int
    batch: int
    micro_batches: int
    passes: CountedPasses
    attention: float
    spill: float
    bubble: float
    memory: Memory

    @property
    def micro_batch(self) -> int:
        """Samples of a system's micro-batch."""
        return ceil(self.batch / (self.systems * self.micro_batches))

    @property
    def layers_seconds(self) -> float:
        """All passes of all layers of all micro-batches."""
        return self.micro_batches * sum(count * one.seconds for count, one in self.passes)

    @cached_property
    def seconds(self) -> float:
        """The step."""
        work = self.layers_seconds + self.micro_batches * (self.attention + self.spill)
        return self.wafer.fixed + work + self.bubble

    @property
    def samples_per_second(self) -> float:
        """Of all systems together."""
        return self.batch / self.seconds

    @property
    def bytes_in(self) -> float:
        """Weights that one system receives in a step."""
        return self.micro_batches * sum(count * one.bytes_in for count, one in self.passes)

    @property
    def bytes_out(self) -> float:
        """Gradients that one system sends in a step."""
        return self.micro_batches * sum(count * one.bytes_out for count, one in self.passes)

    @property
    def limits(self) -> dict[Limit, float]:
        """What binds → its share of the layers' seconds."""
        total = self.layers_seconds / self.micro_batches
        shares: dict[Limit, float] = {}
        for count, one in self.passes:
            shares[one.limit] = shares.get(one.limit, 0.0) + count * one.seconds / total
        return shares

    @property
    def energy(self) -> Energy:
        """Joules of a step on all systems."""
        hops = self.micro_batches * sum(count * one.hops for count, one in self.passes)
        return energy(self.wafer.system, self.seconds, self.systems, hops)

    @property
    def parts(self) -> dict[str, float]:
        """What the step's seconds are made of; they add up to it."""
        one = [(self.micro_batches * count, each) for count, each in self.passes]
        waiting = sum(count * max(0.0, each.io - each.on_wafer) for count, each in one)
        return {
            "compute": sum(count * each.compute for count, each in one),
            "reduction": sum(count * (each.on_wafer - each.compute) for count, each in one),
            "waiting for wafer I/O": waiting,
            "fill": sum(count * each.fill for count, each in one),
            "attention scores": self.micro_batches * self.attention,
            "spill": self.micro_batches * self.spill,
            "optimizer bubble": self.bubble,
            "fixed": self.wafer.fixed,
        }


def predict(
    network: Network,
    batch: int,
    wafer: Wafer,
    *,
    systems: int = 1,
    micro_batch: int | None = None,
    lines: int | None = None,
    densest: float | None = None,
    dense_gradient: bool = False,
) -> Prediction:
    """A step of `batch` samples over all systems.

    `micro_batch` is a system's largest, by default what its memory allows; all are equal. `lines` fixes the mapping,
    which is otherwise the fastest. `densest` is the highest density of the schedule, for which memory is reserved.
    `dense_gradient`: the step is one on which an algorithm asks for the gradient at every place. `ValueError` where
    sizes are not positive, or the micro-batch does not fit the wafer.
    """
    if batch < 1 or systems < 1 or batch < systems:
        raise ValueError(f"expected a batch of at least one sample a system, got {batch} over {systems} systems")
    share = ceil(batch / systems)
    if micro_batch is None:
        micro_batch = min(share, largest_micro_batch(network, wafer, densest=densest))
    if micro_batch < 1:
        raise ValueError(f"micro_batch: expected 1 or more, got {micro_batch}")
    check_micro_batch(network, micro_batch, wafer, densest)
    micro_batches = ceil(share / micro_batch)
    micro_batch = ceil(share / micro_batches)
    choices = grids(network.layers, wafer) if lines is None else [wafer.grid(lines)]
    grid, passes = fastest(network.layers, micro_batch, choices, wafer, dense_gradient)
    kept = memory(network, micro_batch, wafer, densest)
    attention = micro_batch * network.dense_flops / (wafer.system.peak_flops * wafer.utilisation)
    return Prediction(
        wafer,
        network,
        grid,
        systems,
        batch,
        micro_batches,
        passes,
        attention,
        _spill_seconds(passes, kept, wafer),
        _bubble(network, passes, attention, systems, wafer),
        kept,
    )


def _spill_seconds(passes: Iterable[tuple[int, Pass]], kept: Memory, wafer: Wafer) -> float:
    """What is spilled leaves in forward and returns in backward, in the gaps that the weights leave on the ports."""
    seconds = 0.0
    for names, weights in ((("forward",), "bytes_out"), (("dgrad", "wgrad"), "bytes_in")):
        own = [(count, one) for count, one in passes if one.name in names]
        busy = sum(count * getattr(one, weights) for count, one in own) * 8 / wafer.system.io_bits
        free = max(0.0, sum(count * one.seconds for count, one in own) - busy)
        seconds += max(0.0, kept.spilled * 8 / wafer.system.spill_bits - free)
    return seconds


def update_seconds(layer: Layer, wafer: Wafer) -> float:
    """What the store takes to update one layer's weights."""
    return layer.nnz * UPDATE_BYTES / wafer.system.store_bytes


def _bubble(network: Network, passes: CountedPasses, attention: float, systems: int, wafer: Wafer) -> float:
    """From the last pass until the first layer's weights are new: the store updates layers as their gradients arrive,
    the first one last; and nothing hides that layer's way up and down the tree.
    """
    seconds = {(one.layer, one.name): one.seconds for _, one in passes}
    now = store = 0.0
    for turn in turns(network.layers):
        now += attention * turn.before
        for name in turn.passes:
            now += seconds[turn.layer.name, name]
            if name == "wgrad":
                store = max(store, now) + update_seconds(turn.layer, wafer)
        now += attention * turn.after
    levels = ceil(log(systems, 4) - 1e-9) if systems > 1 else 0
    return store - now + 2 * levels * TREE_SECONDS
