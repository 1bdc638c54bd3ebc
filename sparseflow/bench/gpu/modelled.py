"""What a chip's cost model says about a step, where nothing could be measured. Never anything but modelled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sparseflow.bench.gpu.promises import STEPS
from sparseflow.bench.gpu.setting import Shape, short
from sparseflow.hardware.backends.triton_choice import DENSE, WHICH, Product, Which, call_of, decide, modelled
from sparseflow.hardware.backends.triton_cost import ChipModel
from sparseflow.hardware.workload import Workload

DTYPES = (torch.float32, torch.bfloat16)
DENSITIES = (0.1, 0.05, 0.02, 0.01, 0.005, 0.001)


@dataclass(frozen=True)
class Modelled:
    """One step of a layer: how many times faster than dense each product and the whole are, and what runs them.

    `limits` is the same with all efficiencies at 1: what the data sheet allows these kernels. `floor` is what is
    promised, if anything.
    """

    dtype: str
    density: float
    speedups: dict[str, float]
    kernels: dict[str, str]
    step: float
    limit: float
    floor: float | None

    def __str__(self) -> str:
        parts = ", ".join(f"{which} {self.speedups[which]:.1f} ({self.kernels[which]})" for which in WHICH)
        floor = "" if self.floor is None else f"   promised ≥ {self.floor:g}"
        return f"{self.dtype} at {self.density:>5.1%}: step {self.step:5.1f} times dense, modelled: {parts}{floor}"


def modelled_steps(chip: ChipModel, shape: Shape) -> Iterator[Modelled]:
    """By dtype and density."""
    for dtype in DTYPES:
        for density in DENSITIES:
            yield _modelled(chip, shape, dtype, density)


def _modelled(chip: ChipModel, shape: Shape, dtype: torch.dtype, density: float) -> Modelled:
    work = Workload((shape.outputs, shape.inputs), rows=shape.tokens, compute_dtype=dtype, density=density)
    times = modelled(work, chip)
    layout = decide(work, times, "modelled").layout
    chosen = {which: getattr(layout, which) for which in WHICH}
    ours = {which: times[which][chosen[which]] for which in WHICH}
    dense = {which: times[which][DENSE] for which in WHICH}
    limits = {which: min(_at_best(chip, work, which, one) for one in times[which]) for which in WHICH}
    promise = STEPS.get((short(dtype), density))
    return Modelled(
        short(dtype),
        density,
        {which: dense[which] / ours[which] for which in WHICH},
        {which: str(chosen[which]) for which in WHICH},
        sum(dense.values()) / sum(ours.values()),
        sum(dense.values()) / sum(limits.values()),
        None if promise is None else promise.floor,
    )


def _at_best(chip: ChipModel, work: Workload, which: Which, kernel: Product) -> float:
    call = call_of(work, which, kernel)
    return chip.seconds(call) if kernel == DENSE else max(chip.limits(call).values())
