"""The candidates of a layer timed against each other on this machine: forward, backward and optimizer update."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.optim.adam import adam

from sparseflow.hardware.backends import Backend, Cost, SparseOp
from sparseflow.hardware.backends.base import FusedOp, MasterOp
from sparseflow.hardware.workload import Workload

# Interleaved repeats; the medians are compared. Five milliseconds a candidate and repeat bound a plan's time; what
# takes longer is less noisy, and repeated less.
REPEATS = 7
_REPEATS_OF_LONG = 3
_BUDGET = 0.005
# A candidate whose warm-up took so many times as long as the best one's is out of the race: its warm-up is its time.
_HOPELESS = 2.0


def measure(candidates: dict[str, Backend], work: Workload) -> dict[str, Cost]:
    """Costs of the named backends for one layer, on a random mask of its density, interleaved on equal inputs.

    Each is timed as the layer would run it: a FusedOp with ReLU, bias gradient and feature-major tensors inside its
    kernels, any other on contiguous tensors with torch's own ReLU and bias gradient beside it. Backward is one call
    in the protocol, so `wgrad` holds all of it and `dgrad` is 0. `update` is a fused Adam step over the values. The
    global RNG is not used.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = _inputs(work, generator)
    trials = {name: _Trial(backend, work, inputs) for name, backend in candidates.items()}
    best = min(trial.warm_up() for trial in trials.values())
    running = [trial for trial in trials.values() if trial.elapsed <= _HOPELESS * best or best < _BUDGET]
    for _ in range(REPEATS if best < 2 * _BUDGET else _REPEATS_OF_LONG):
        for trial in running:
            trial.repeat()
    return {name: trial.cost() for name, trial in trials.items()}


@dataclass
class _Inputs:
    x: Tensor
    weight: Tensor
    mask: Tensor
    bias: Tensor | None


def _inputs(work: Workload, generator: torch.Generator) -> _Inputs:
    x = torch.randn(work.input_shape(), generator=generator).to(work.device, work.compute_dtype)
    weight = torch.randn(work.shape, generator=generator)
    mask = torch.rand(weight.shape, generator=generator) < work.density
    mask.view(-1)[0] = True
    bias = torch.zeros(work.shape[0], device=work.device, dtype=work.compute_dtype) if work.bias else None
    return _Inputs(x, weight.to(work.device, work.compute_dtype), mask.to(work.device), bias)


class _Trial:
    def __init__(self, backend: Backend, work: Workload, inputs: _Inputs) -> None:
        self.work = work
        self.op = backend.pack(inputs.mask, backend.layout(work))
        # A MasterOp gets the parameter itself, and makes its short copies within the time of each pass.
        mastered = isinstance(self.op, MasterOp) and work.compute_dtype in self.op.compute_dtypes
        self.values = self.op.pack_values(inputs.weight.to(work.dtype) if mastered else inputs.weight)
        self.passes = _passes(self.op, work, inputs, self.values)
        self.passes["update"] = _update(self.values.to(work.dtype))
        self.times: dict[str, list[float]] = {"forward": [], "backward": [], "update": []}
        self.warm: dict[str, float] = {}
        self.elapsed = 0.0
        self.loops = 1

    def warm_up(self) -> float:
        """Runs twice; sets and returns the seconds of the second time."""
        for part in self.passes.values():
            part()
        for name, part in self.passes.items():
            self.warm[name] = self._timed(part, 1)
        self.elapsed = sum(self.warm.values())
        self.loops = max(1, min(50, int(_BUDGET / max(self.elapsed, 1e-6))))
        return self.elapsed

    def repeat(self) -> None:
        for name, part in self.passes.items():
            self.times[name].append(self._timed(part, self.loops))

    def _timed(self, part: Callable[[], object], loops: int) -> float:
        self._wait()
        start = time.perf_counter()
        for _ in range(loops):
            part()
        self._wait()
        return (time.perf_counter() - start) / loops

    def _median(self, name: str) -> float:
        return median(self.times[name] or [self.warm[name]])

    def cost(self) -> Cost:
        return Cost(
            forward=self._median("forward"),
            dgrad=0.0,
            wgrad=self._median("backward"),
            update=self._median("update"),
            bytes=4 * self.values.numel() * self.work.dtype.itemsize + self.op.nbytes,
            measured=True,
        )

    def _wait(self) -> None:
        if self.work.device.type == "cuda":
            torch.cuda.synchronize(self.work.device)


def _passes(op: SparseOp, work: Workload, inputs: _Inputs, values: Tensor) -> dict[str, Callable[[], object]]:
    x, bias = inputs.x, inputs.bias
    if not isinstance(op, FusedOp):
        return _plain_passes(op, work, inputs, values)
    x = _feature_major(x) if work.chained_in else x

    def forward() -> Tensor:
        return op.forward_fused(x, values, bias, work.relu, work.chained_out)

    y = forward()
    dy = _feature_major(torch.ones_like(y)) if work.chained_out else torch.ones_like(y)
    saved = y if work.relu else None

    def backward() -> object:
        return op.backward_fused(dy, x, saved, values, work.needs_dx, work.bias)

    return {"forward": forward, "backward": backward}


def _plain_passes(op: SparseOp, work: Workload, inputs: _Inputs, values: Tensor) -> dict[str, Callable[[], object]]:
    x, bias = inputs.x, inputs.bias

    def forward() -> Tensor:
        y = op.forward(x, values, bias)
        return torch.relu(y) if work.relu else y

    y = forward()
    dy = torch.ones_like(y)

    def backward() -> object:
        # As autograd does it for torch.relu and as the layer does it for the bias.
        masked = torch.ops.aten.threshold_backward(dy, y, 0) if work.relu else dy
        dbias = masked.sum(0 if masked.dim() == 2 else (0, 2, 3)) if work.bias else None
        return op.backward(masked, x, values, work.needs_dx), dbias

    return {"forward": forward, "backward": backward}


def _update(values: Tensor) -> Callable[[], object]:
    gradient, first, second = (torch.zeros_like(values) for _ in range(3))
    step = torch.ones((), device=values.device)

    def update() -> None:
        # Not torch.optim.Adam: a model has one of it, not one a layer, and the first of a process imports
        # torch._dynamo, which takes seconds.
        adam(
            [values],
            [gradient],
            [first],
            [second],
            [],
            [step],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=1e-3,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    return update


def _feature_major(tensor: Tensor) -> Tensor:
    # (B, O) with strides (1, B), or (B, C, H, W) stored as CHWN.
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
