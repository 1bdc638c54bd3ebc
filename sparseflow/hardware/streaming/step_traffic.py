"""What one step of training moves between a store and the rest, counted by the store and by the system."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from sparseflow.hardware.streaming.channel import Channel
from sparseflow.hardware.streaming.store import Store
from sparseflow.hardware.streaming.updates import Rule

# Bytes of a kept weight in a step with AdamW, at 16 bits on the wire: value and index twice, value and moments to the
# optimizer and back, and the copy for the wire.
BOUND = 2 * (2 + 2) + 12 + 12 + 2


@dataclass(frozen=True)
class StepTraffic:
    """Bytes of a step. read, written: by the store's count; from_disk, to_disk: by the system's, None if it has none.

    The disk moves less than is counted where the system has it in memory still.
    """

    nnz: int
    read: int
    written: int
    from_disk: int | None
    to_disk: int | None


def step_traffic(store: Store, rule: Rule) -> StepTraffic:
    """Does one step, without a model: every weight goes out twice, and a random gradient of it comes back.

    What the system has in memory of a parameter is dropped after each use. The step counts, and is not committed.
    """
    channel = Channel(store)
    buffer = torch.empty(max(math.prod(store.shape(name)) for name in store.names))
    read, written = store.traffic.read, store.traffic.written
    before = _moved()
    for name in store.names:
        channel.send_weights(name, "forward", _within(buffer, store.shape(name)))
        store.forget([name])
    for name in reversed(store.names):
        weight = channel.send_weights(name, "backward", _within(buffer, store.shape(name)))
        gradient_Z = channel.send_gradient(name, "backward", store.gather(name, weight.normal_()))
        store.update(name, gradient_Z, rule)
        store.forget([name])
    store.end_step()
    after = _moved()
    return StepTraffic(
        nnz=sum(map(store.nnz, store.names)),
        read=store.traffic.read - read,
        written=store.traffic.written - written,
        from_disk=None if before is None or after is None else after[0] - before[0],
        to_disk=None if before is None or after is None else after[1] - before[1],
    )


def _within(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    return buffer[: math.prod(shape)].view(shape)


def _moved() -> tuple[int, int] | None:
    """What the process has had read from disks and written to them; other systems than Linux count something else."""
    if sys.platform != "linux":
        return None
    counted = psutil.Process().io_counters()
    return counted.read_bytes, counted.write_bytes
