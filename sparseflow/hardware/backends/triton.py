"""Triton kernels for NVIDIA and AMD GPUs: any mask, exactly, each product of a layer by the kernel that is fastest.

Under TRITON_INTERPRET=1 the same kernels run on the CPU, slowly, so that they can be checked without a GPU. Triton is
not imported before a layer is packed or timed.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import Tensor

from sparseflow.hardware.backends.base import Cost, SparseOp
from sparseflow.hardware.backends.triton_chips import H100, chip_of
from sparseflow.hardware.backends.triton_choice import (
    ASSUMED_ROWS,
    DENSE,
    DTYPES,
    WHICH,
    Decision,
    Layout,
    assumed,
    call_of,
    decide,
    modelled,
    without,
)
from sparseflow.hardware.workload import Workload
from sparseflow_kernels.triton_tune import interpreted


class Triton:
    """Values are the kept weights in row-major order; each product reads a copy of them in an order of its own."""

    name = "triton"

    def unsupported(self, work: Workload) -> str | None:
        for dtype in (work.dtype, work.compute_dtype):
            if dtype not in DTYPES:
                return f"runs float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
        if max(work.weights, *work.shape) >= 2**31:
            return "its indices have 32 bits, too few for 2**31 weights or more"
        if find_spec("triton") is None:
            return "triton is not installed; pip install triton"
        return _unsupported_device(work.device)

    def cost(self, work: Workload) -> Cost:
        some, chip = assumed(work), chip_of(work.device)
        # A model's answer throughout: plans ask for the costs of many densities.
        layout = _modelled(some).layout
        seconds = {which: chip.seconds(call_of(some, which, getattr(layout, which))) for which in WHICH}
        nnz = max(1, round(work.density * work.weights))
        sparse = sum(getattr(layout, which) != DENSE for which in ("forward", "dgrad"))
        return Cost(
            forward=seconds["forward"],
            dgrad=seconds["dgrad"] if work.needs_dx else 0.0,
            wgrad=seconds["wgrad"],
            update=7 * 4 * nnz / chip.hbm + chip.launch,
            # Values, gradient and two moments; the place of each; and for each sparse product a column and a place.
            bytes=(4 * work.dtype.itemsize + 4 + 6 * sparse) * nnz,
            measured=False,
        )

    def layout(self, work: Workload) -> str:
        return str(_decide(work).layout)

    def explain(self, work: Workload) -> str:
        """The kernel of each product, and what it was compared with."""
        words = str(_decide(work))
        return words if work.rows else f"{words}, for {ASSUMED_ROWS:,} rows, since no sample was seen"

    def pack(self, mask: Tensor, layout: str) -> SparseOp:
        parsed = Layout.parse(layout)
        # Triton is loaded when the first layer is packed: a machine without it can still ask why not.
        from sparseflow.hardware.backends.triton_op import pack

        return pack(mask, parsed)


def _decide(work: Workload) -> Decision:
    some = assumed(work)
    # What nobody has seen run is not worth a measurement.
    if work.rows and work.device.type == "cuda" and torch.cuda.is_available():
        return _measured(some)
    return _modelled(some)


def _modelled(work: Workload) -> Decision:
    # The model knows of no copies.
    return _modelled_alone(replace(work, chained_in=False, chained_out=False))


@functools.cache
def _modelled_alone(work: Workload) -> Decision:
    if work.device.type == "cpu":
        # Whoever asks for the interpreter wants to see the kernels run.
        times = without(modelled(work, H100), DENSE)
        return decide(work, times, f"interpreted, as modelled for the {H100.name} without dense")
    chip = chip_of(work.device)
    return decide(work, modelled(work, chip), f"modelled for the {chip.name}")


@functools.cache
def _measured(work: Workload) -> Decision:
    from sparseflow.hardware.backends.triton_measure import measured

    chip = chip_of(work.device)
    return decide(work, measured(work, chip), f"each measured on the {chip.name}")


def _unsupported_device(device: torch.device) -> str | None:
    if device.type == "cpu":
        ask = (
            "Triton needs a GPU; TRITON_INTERPRET=1 in the environment runs its kernels on the CPU, slowly, as a check"
        )
        return None if interpreted() else ask
    if device.type != "cuda":
        return f"runs on NVIDIA and AMD GPUs, not on {device.type}"
    if interpreted():
        return "TRITON_INTERPRET=1 is set, with which Triton's kernels run on the CPU only; unset it to use the GPU"
    if not torch.cuda.is_available():
        return "Triton needs a GPU, and torch finds none here"
    if torch.version.hip is not None:
        chip = torch.cuda.get_device_properties(device).gcnArchName
        cdna = chip.startswith(("gfx90a", "gfx94", "gfx95"))
        return None if cdna else f"runs on AMD's CDNA chips from gfx90a (MI200) on, not on {chip}"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"runs on NVIDIA chips from sm_80 (A100) on, not on sm_{major}{minor}"
