"""The whole step of a layer, as layers run it: forward, input gradient and weight gradient, on each backend.

In 16 bits as under autocast: the values are kept in float32, and whatever short copies they need are made anew in
every step. The optimizer's update, which short values make cheaper too, is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sparseflow.bench.gpu.point import Absent, Point, Ready, Side, Verdict, measure
from sparseflow.bench.gpu.problem import PRODUCTS, Problem, judge, poisoned, problem
from sparseflow.bench.gpu.setting import Setting
from sparseflow.hardware import backends
from sparseflow.hardware.backends import SparseOp
from sparseflow.hardware.backends.base import FusedOp, MasterOp
from sparseflow.hardware.measure import measure as measure_candidates
from sparseflow.hardware.workload import Workload

BACKENDS = ("dense", "dense-compact", "triton")


def step(setting: Setting) -> Iterator[Point]:
    """Every backend's step inside a chain of layers; ours also alone, with its copies between the two layouts.

    "planned" is the one that a plan would choose here: what a user gets with backend="auto".
    """
    for dtype in (torch.float32, torch.bfloat16):
        for density in setting.densities:
            task = problem(setting, setting.shape, dtype, density)
            work = workload(task, chained=True)
            sides = [_side(name, name, task, work) for name in BACKENDS]
            sides.append(_side("triton alone", "triton", task, workload(task, chained=False)))
            points = measure(sides, task.copies, setting.timed)
            yield from points
            if setting.timed:
                yield _planned(points, work)


def run_step(op: SparseOp, values: Tensor, x: Tensor, dy: Tensor, chained: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(y, dx, dvalues) of one step of a layer without bias: x (B, I), dy (B, O); dvalues of the dtype of `values`."""
    own = isinstance(op, MasterOp) and x.dtype in op.compute_dtypes
    operand = values if own else values.to(x.dtype)
    if isinstance(op, FusedOp):
        y = op.forward_fused(x, operand, None, False, chained)
        dx, dvalues, _ = op.backward_fused(dy, x, None, operand, True, False)
    else:
        y = op.forward(x, operand, None)
        dx, dvalues = op.backward(dy, x, operand, True)
    assert dx is not None
    return y, dx, dvalues.to(values.dtype)


def workload(task: Problem, chained: bool) -> Workload:
    """The layer as backends see it; `chained` where its neighbours are sparse layers too."""
    return Workload(
        shape=(task.shape.outputs, task.shape.inputs),
        rows=task.shape.tokens,
        compute_dtype=task.dtype,
        device=task.mask.device,
        density=task.density,
        chained_in=chained,
        chained_out=chained,
    )


def _side(name: str, backend: str, task: Problem, work: Workload) -> Side:
    def prepare() -> Ready:
        found = backends.get(backend)
        reason = found.unsupported(work)
        if reason is not None:
            raise Absent(reason)
        layout = found.layout(work)
        op = found.pack(task.mask, layout)
        values = op.pack_values(task.weight.float())
        chained = isinstance(op, FusedOp) and work.chained_in
        xs, dys = ([_rows(one, chained) for one in inputs] for inputs in (task.xs, task.dys))

        def launch(number: int) -> tuple[Tensor, Tensor, Tensor]:
            return run_step(op, values, xs[number], dys[number], work.chained_out)

        return Ready(launch, lambda: _judge(task, op, *_poisoned_step(launch)), layout)

    return Side(task.point("step", name, "step"), prepare)


def _poisoned_step(launch: Callable[[int], tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    with poisoned():
        return launch(0)


def _judge(task: Problem, op: SparseOp, y: Tensor, dx: Tensor, dvalues: Tensor) -> Verdict:
    got = (y.t(), dx.t(), op.unpack_values(dvalues).to(task.dtype))
    found = [judge(one, task.expected(product)) for product, one in zip(PRODUCTS, got)]
    wrong = [f"{product}: {text}" for product, (text, _) in zip(PRODUCTS, found) if text != "ok"]
    return "; ".join(wrong) or "ok", max(error for _, error in found)


def _rows(features: Tensor, feature_major: bool) -> Tensor:
    return features.t() if feature_major else features.t().contiguous()


def _planned(points: list[Point], work: Workload) -> Point:
    right = {point.side: point for point in points if point.seconds and point.side in BACKENDS}
    costs = measure_candidates({name: backends.get(name) for name in right}, work)
    chosen = min(costs, key=lambda name: costs[name].seconds)
    return replace(right[chosen], side="planned", config=chosen)
