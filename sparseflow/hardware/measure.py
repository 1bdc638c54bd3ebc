"""The candidates of a layer timed against each other on this machine: forward, backward and optimizer update."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from sparseflow.hardware.backends import Backend, Cost, SparseOp
from sparseflow.hardware.workload import Workload

# Interleaved repeats; the medians are compared. Five milliseconds a candidate and repeat bound a plan's time.
REPEATS = 7
_BUDGET = 0.005


def measure(candidates: dict[str, Backend], work: Workload) -> dict[str, Cost]:
    """Costs of the named backends for one layer, on a random mask of its density, interleaved on equal inputs.

    Backward is one call in the protocol, so `wgrad` holds all of it and `dgrad` is 0. `update` is a fused Adam
    step over the values. The global RNG is not used.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = _inputs(work, generator)
    trials = {name: _Trial(backend, work, inputs) for name, backend in candidates.items()}
    for trial in trials.values():
        trial.warm_up()
    for _ in range(REPEATS):
        for trial in trials.values():
            trial.repeat()
    return {name: trial.cost() for name, trial in trials.items()}


@dataclass
class _Inputs:
    x: Tensor
    weight: Tensor
    mask: Tensor


def _inputs(work: Workload, generator: torch.Generator) -> _Inputs:
    x = torch.randn(work.input_shape(), generator=generator).to(work.device, work.compute_dtype)
    weight = torch.randn(work.shape, generator=generator)
    scores = torch.rand(weight.numel(), generator=generator)
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[scores.topk(max(1, round(work.density * weight.numel()))).indices] = True
    return _Inputs(x, weight.to(work.device, work.compute_dtype), mask.view(work.shape).to(work.device))


class _Trial:
    def __init__(self, backend: Backend, work: Workload, inputs: _Inputs) -> None:
        self.work = work
        self.x = inputs.x
        self.op: SparseOp = backend.pack(inputs.mask, backend.layout(work))
        self.values = self.op.pack_values(inputs.weight)
        self.dy = torch.ones_like(self.op.forward(self.x, self.values, None))
        master = self.values.to(work.dtype)
        self.optimizer = torch.optim.Adam([torch.nn.Parameter(master)], lr=1e-3, fused=True)
        self.optimizer.param_groups[0]["params"][0].grad = torch.zeros_like(master)
        self.times: dict[str, list[float]] = {"forward": [], "backward": [], "update": []}
        self.loops = 1

    def warm_up(self) -> None:
        start = time.perf_counter()
        for part in self._parts().values():
            part()
        elapsed = time.perf_counter() - start
        for part in self._parts().values():
            part()
        self.loops = max(1, min(10, int(_BUDGET / max(elapsed, 1e-6))))

    def repeat(self) -> None:
        for name, part in self._parts().items():
            self._wait()
            start = time.perf_counter()
            for _ in range(self.loops):
                part()
            self._wait()
            self.times[name].append((time.perf_counter() - start) / self.loops)

    def cost(self) -> Cost:
        return Cost(
            forward=median(self.times["forward"]),
            dgrad=0.0,
            wgrad=median(self.times["backward"]),
            update=median(self.times["update"]),
            bytes=4 * self.values.numel() * self.work.dtype.itemsize + self.op.nbytes,
            measured=True,
        )

    def _parts(self) -> dict[str, Callable[[], object]]:
        return {
            "forward": lambda: self.op.forward(self.x, self.values, None),
            "backward": lambda: self.op.backward(self.dy, self.x, self.values, self.work.needs_dx),
            "update": self.optimizer.step,
        }

    def _wait(self) -> None:
        if self.work.device.type == "cuda":
            torch.cuda.synchronize(self.work.device)
