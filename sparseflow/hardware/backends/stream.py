"""Single layers as a weight-streaming wafer would run them, emulated on anything that torch runs on.

Values are the kept weights in canonical order, what such a machine has on its wire. The products here are dense ones
over a scratch weight, as in `dense-compact`; `stream_literal` does the same work one nonzero at a time, in the
machine's order. The cost is the machine's, modelled by `sparseflow.hardware.wafer`, and says nothing of how long the
emulation takes.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from sparseflow.hardware.backends.base import Cost
from sparseflow.hardware.backends.dense import CompactOp
from sparseflow.hardware.backends.stream_literal import GROUPS, Order
from sparseflow.hardware.workload import Geometry, Workload

_VERSION = 1
_LAYOUT = re.compile(rf"stream/{_VERSION}/([^/]+)/groups=([1-9]\d*)")


class Stream:
    """Any layer in floating point; its layout says in how many groups features and tokens are shared out."""

    name = "stream"
    machine = "CS-2"

    def unsupported(self, work: Workload) -> str | None:
        if not work.dtype.is_floating_point:
            return f"computes in floating point, not {work.dtype}"
        return None

    def cost(self, work: Workload) -> Cost:
        # Beside the machine model, on first use, for a layer that runs needs none of it.
        from sparseflow.hardware.wafer.predictions import predict_layer

        # A mask may keep nothing, which no machine is asked to run.
        step = predict_layer(replace(work, density=max(work.density, 1 / work.weights)))
        return Cost(
            forward=step.forward.seconds,
            dgrad=step.dgrad.seconds if work.needs_dx else 0.0,
            wgrad=step.wgrad.seconds,
            update=step.update,
            bytes=(4 * work.dtype.itemsize + _INDEX_BYTES) * max(1, round(work.density * work.weights)),
            measured=False,
        )

    def layout(self, work: Workload) -> str:
        return f"stream/{_VERSION}/{work.geometry}/groups={GROUPS}"

    def pack(self, mask: Tensor, layout: str) -> CompactOp:
        order_of(layout)
        return CompactOp(layout, tuple(mask.shape), mask.flatten().nonzero().squeeze(1))


def order_of(layout: str) -> Order:
    """The order of additions that a layout stands for. `ValueError` for one of another backend or version."""
    found = _LAYOUT.fullmatch(layout)
    if found is None:
        raise ValueError(
            f"backend 'stream': expected a layout that begins with 'stream/{_VERSION}/', such as "
            f"'stream/{_VERSION}/linear/groups={GROUPS}', got {layout!r}; plan anew"
        )
    return Order(Geometry.parse(found[1]), int(found[2]))


# A column beside each value.
_INDEX_BYTES = 2
