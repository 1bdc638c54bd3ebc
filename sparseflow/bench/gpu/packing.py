"""What a new mask costs, and what a step pays to bring the packed copies of the values up to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from sparseflow.bench.gpu.clock import REPEATS
from sparseflow.bench.gpu.point import Absent, Point, Ready, Side, Verdict, measure
from sparseflow.bench.gpu.problem import Problem, problem
from sparseflow.bench.gpu.products import GATHER, PANELS
from sparseflow.bench.gpu.setting import Setting
from sparseflow.bench.gpu.step import workload
from sparseflow.hardware import backends
from sparseflow.hardware.backends.triton_choice import DENSE, Layout, Product
from sparseflow.hardware.workload import Geometry

# The most that promises speak about, and sparser ones.
_DENSITIES = (0.1, 0.05, 0.01)


def packing(setting: Setting) -> Iterator[Point]:
    """Packing on the device, by the clock on the wall; the refresh of both orientations, by the GPU's."""
    for density in _DENSITIES if setting.timed else _DENSITIES[:1]:
        for dtype in (torch.float32, torch.bfloat16):
            task = problem(setting, setting.shape, dtype, density)
            yield from measure([_refresh(task)], task.copies, setting.timed)
        for kernel in (GATHER, *PANELS[-1:]):
            yield _pack(task, kernel, setting.timed)


def _pack(task: Problem, kernel: Product, timed: bool) -> Point:
    """The point of `Backend.pack` for three products of a kind. The host waits for the device there: by the wall."""
    backend, layout = backends.get("triton"), str(Layout(Geometry(), kernel, kernel, kernel))

    def prepare() -> Ready:
        reason = backend.unsupported(workload(task, chained=True))
        if reason is not None:
            raise Absent(reason)
        return Ready(lambda number: backend.pack(task.mask, layout), lambda: _judge(task, layout), layout)

    side = Side(task.point("packing", f"triton {kernel.kind}", "pack"), prepare)
    (point,) = measure([side], 1, timed=False)
    if not timed or point.check != "ok" or point.absent:
        return point
    seconds = tuple(_wall(lambda: backend.pack(task.mask, layout)) for _ in range(REPEATS))
    return replace(point, seconds=seconds, by="the clock on the wall")


def _judge(task: Problem, layout: str) -> Verdict:
    op = backends.get("triton").pack(task.mask, layout)
    ones = torch.ones_like(op.pack_values(task.weight.float()))
    same = torch.equal(op.unpack_values(ones) != 0, task.mask)
    return ("ok", 0.0) if same else ("unpack_values(ones) is not the mask", float("inf"))


def _wall(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _refresh(task: Problem) -> Side:
    def prepare() -> Ready:
        # Imports triton, which a run without this section need not have.
        from sparseflow.hardware.backends.triton_parts import parts_of
        from sparseflow_kernels.triton_pack import refresh

        parts = parts_of(task.mask, Layout(Geometry(), GATHER, GATHER, DENSE))
        sources = [parts["forward"].source, parts["dgrad"].source]
        # As many as there are inputs, so that they are read from memory as in a step.
        values = [task.weight[task.mask].float() + number for number in range(task.copies)]

        def verdict() -> Verdict:
            packed = refresh(values[0], sources, task.dtype)
            expected = [torch.where(one < 0, 0.0, values[0][one.clamp(min=0).long()]).to(task.dtype) for one in sources]
            same = all(torch.equal(got, want) for got, want in zip(packed, expected))
            return ("ok", 0.0) if same else ("a packed copy differs from its values", float("inf"))

        return Ready(lambda number: refresh(values[number], sources, task.dtype), verdict)

    return Side(task.point("packing", "triton", "refresh"), prepare)
