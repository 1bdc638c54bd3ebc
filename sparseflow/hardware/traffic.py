"""What a launch costs each of its ranks, on paper: bytes on the wire in a step, and bytes of memory.

Everything is counted from parameters and modelled by formulas; nothing is measured, and activations, latency and
what a library keeps for itself are left out. With W ranks and ring collectives a rank sends

    DDP     2 (W-1)/W · G                          one all-reduce of the gradients, G bytes
    FSDP2   (W-1) · (2 Sb + Sr) + (W-1) · Sg       all-gathers of the values, then a reduce-scatter of the gradients

where Sb and Sr are a rank's shards of the blocks' values, gathered in forward and backward, and of the root's, gathered
once; Sg is its shard of the gradients. A shard holds 1/W of a parameter's first dimension, rounded up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from sparseflow.hardware.choice import Plan
from sparseflow.hardware.stored import MOMENTS, Stored, stored_parameters


@dataclass(frozen=True)
class Bill:
    """What one rank sends in a step, and what it keeps, in bytes by what it is for."""

    sent: int
    memory: Mapping[str, int]

    @property
    def kept(self) -> int:
        """All of its memory."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Charge:
    """Traffic and memory of each rank of a launch. Modelled; see the module."""

    world: int
    stored: tuple[Stored, ...]

    @property
    def pruned_gradient_bytes(self) -> int:
        """Gradient bytes of the pruned layers."""
        return sum(one.gradient_bytes for one in self.stored if one.backend is not None)

    @property
    def dense_gradient_bytes(self) -> int:
        """What those would be were the same layers dense."""
        return sum(one.weights * one.itemsize for one in self.stored if one.backend is not None and one.trained)

    @property
    def other_gradient_bytes(self) -> int:
        """Gradient bytes of the parameters that are not pruned."""
        return sum(one.gradient_bytes for one in self.stored if one.backend is None)

    @property
    def ratio(self) -> float:
        """Gradient bytes of the pruned layers over those of the same layers dense; 1.0 on `dense`."""
        return self.pruned_gradient_bytes / self.dense_gradient_bytes if self.dense_gradient_bytes else 1.0

    @property
    def ddp(self) -> Bill:
        """Everything on every rank; DDP's buckets hold the gradients once more."""
        gradients = self.pruned_gradient_bytes + self.other_gradient_bytes
        memory = {
            "values": sum(one.bytes for one in self.stored),
            "gradients": gradients,
            "moments": MOMENTS * gradients,
            "indices": self._indices,
            "buckets": gradients if self.world > 1 else 0,
        }
        return Bill(round(2 * (self.world - 1) * gradients / self.world), memory)

    @property
    def fsdp2(self) -> Bill:
        """Values, gradients and moments in shards; whole are the indices, the root's values, and of the blocks the one
        at work, with its gradients, and the next one's values. Our engine also keeps the model that it was given.
        """
        shards = {one: one.shard_bytes(self.world) for one in self.stored}
        trained = sum(size for one, size in shards.items() if one.trained)
        gathered = sum(size * (2 if one.block else 1) for one, size in shards.items())
        blocks = _by_block(self.stored)
        memory = {
            "values": sum(shards.values()),
            "gradients": trained,
            "moments": MOMENTS * trained,
            "indices": self._indices,
            "gathered": blocks.pop("", 0) + 3 * max(blocks.values(), default=0),
            "given model": sum(one.bytes for one in self.stored),
        }
        return Bill((self.world - 1) * (gathered + trained), memory)

    def to_json(self) -> dict[str, Any]:
        """Plain data, everything in bytes."""
        return {
            "world": self.world,
            "modelled": True,
            "pruned_gradient_bytes": self.pruned_gradient_bytes,
            "dense_gradient_bytes": self.dense_gradient_bytes,
            "other_gradient_bytes": self.other_gradient_bytes,
            "ratio": self.ratio,
            "ddp": asdict(self.ddp),
            "fsdp2": asdict(self.fsdp2),
        }

    def __str__(self) -> str:
        lines = [
            f"on {self.world:,} ranks, modelled: gradients of the pruned layers {size(self.pruned_gradient_bytes)}, "
            f"{self.ratio:.4g} of those dense; of all else {size(self.other_gradient_bytes)}"
        ]
        for name, bill in (("DDP", self.ddp), ("FSDP2", self.fsdp2)):
            parts = ", ".join(f"{what} {size(count)}" for what, count in bill.memory.items() if count)
            lines.append(f"  {name:<6} a rank sends {size(bill.sent)} a step and keeps {size(bill.kept)}: {parts}")
        return "\n".join(lines)

    @property
    def _indices(self) -> int:
        return sum(one.index_bytes for one in self.stored)


def charge(model: nn.Module, plan: Plan, world: int) -> Charge:
    """What training the model costs each of `world` ranks, with AdamW, its layers on the backends of the plan.

    The model is dense, and values and indices are modelled as the plan's backends count them; or it is sparse already,
    and both are those that exist. It may be on the meta device. `ValueError` for a world below 1 and for a plan of
    another model.
    """
    if world < 1:
        raise ValueError(f"world: expected 1 rank or more, got {world}")
    return Charge(world, stored_parameters(model, plan))


def gradient_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of a model's gradients: "pruned" layers as they are, "pruned_if_dense", and "other"."""
    counted = charge(model, Plan((), {}), world=1)
    return {
        "pruned": counted.pruned_gradient_bytes,
        "pruned_if_dense": counted.dense_gradient_bytes,
        "other": counted.other_gradient_bytes,
    }


def size(count: int) -> str:
    """Bytes in words, three figures: 1.23 GB is 1.23e9."""
    value, units = float(count), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if value < 999.5 or unit == units[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError(count)


def _by_block(stored: Sequence[Stored]) -> dict[str, int]:
    """Bytes of the values of each block."""
    sums: dict[str, int] = {}
    for one in stored:
        sums[one.block] = sums.get(one.block, 0) + one.bytes
    return sums
