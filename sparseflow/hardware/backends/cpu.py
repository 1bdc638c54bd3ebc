"""Sparse CPU kernels: x86-64 and AArch64, LLVM IR compiled at first use, threads from torch's OpenMP pool.

Values are kept in the order in which the backward writes their gradient: column by column of the weight, in blocks
of output features that keep what a block gathers in cache. The block sizes are part of the layout.
"""

from __future__ import annotations

import re
from importlib.util import find_spec

import torch
from torch import Tensor

from sparseflow.hardware.backends.base import Cost, SparseOp
from sparseflow.hardware.backends.rates import rates
from sparseflow.hardware.workload import Geometry, Workload

_LINEAR = re.compile(r"cpu/1/linear/f(?P<forward>[1-9]\d*)/b(?P<backward>[1-9]\d*)")


class Cpu:
    """Unstructured sparse layers whose arithmetic is proportional to the kept weights."""

    name = "cpu"

    def unsupported(self, work: Workload) -> str | None:
        if work.device.type != "cpu":
            return f"runs on the CPU, not on {work.device.type}"
        for dtype in (work.dtype, work.compute_dtype):
            if dtype not in (torch.float32, torch.bfloat16):
                return f"runs float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
        if work.weights >= 2**31:
            return "its indices have 32 bits, too few for 2**31 weights or more"
        if find_spec("llvmlite") is None:
            return "llvmlite is not installed; pip install llvmlite"
        return None

    def cost(self, work: Workload) -> Cost:
        machine = rates(work.device, torch.float32, work.threads)
        nnz = max(1, round(work.density * work.weights))
        # A gathered multiply-add runs at about a third of the rate of a dense one; the fused backward at about half.
        product = 2.0 * nnz * work.positions / machine.flops
        activations = 4.0 * work.positions * (work.shape[0] + work.shape[1]) / machine.bandwidth
        return Cost(
            forward=3 * product + activations,
            dgrad=2 * product if work.needs_dx else 0.0,
            wgrad=2 * product + activations,
            update=7 * 4 * nnz / machine.bandwidth,
            bytes=(4 * work.dtype.itemsize + 12) * nnz,
            measured=False,
        )

    def layout(self, work: Workload) -> str:
        if work.geometry.kind == "conv2d":
            return f"cpu/1/{work.geometry}"
        block = _block(work.density)
        return f"cpu/1/linear/f{block}/b{block}"

    def pack(self, mask: Tensor, layout: str) -> SparseOp:
        # llvmlite is loaded when the first layer is packed: a machine without it can still ask why not.
        linear = _LINEAR.fullmatch(layout)
        if linear is not None:
            from sparseflow.hardware.backends.cpu_linear import pack_linear

            return pack_linear(mask, layout, int(linear["forward"]), int(linear["backward"]))
        if not layout.startswith("cpu/1/conv2d:"):
            raise ValueError(f"backend 'cpu': expected a layout that begins with 'cpu/1/', got {layout!r}; plan anew")
        from sparseflow.hardware.backends.cpu_conv2d import pack_conv2d

        return pack_conv2d(mask, layout, Geometry.parse(layout.removeprefix("cpu/1/")))


def _block(density: float) -> int:
    """Features of a block: about a dozen kept weights in each row of it, between 128 and 1024 features."""
    block = 128
    while block < 1024 and block * density < 10:
        block *= 2
    return block
