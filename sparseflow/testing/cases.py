"""What is tried on a backend: layers, masks, and the random tensors for them.

Shapes: B rows or images, I in, O out, C channels, H W image, Z values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparseflow.hardware.backends import Backend, SparseOp
from sparseflow.hardware.workload import Geometry, Workload
from sparseflow.testing.closeness import TOLERANCE, relative_error
from sparseflow.testing.placement import bordered
from sparseflow_kernels import reference

# A rule that was broken, and how.
Broken = Iterator[tuple[str, str]]

# One row; a few; what is no multiple of a vector; and one more than the usual tiles of 64 and 128.
BATCHES = (1, 7, 60, 129)

# (O, I), rows: odd, tiny, and across the usual tile sizes of 32, 64 and 128.
_LINEAR = [((1, 1), 1), ((7, 33), 7), ((33, 7), 60), ((60, 129), 7), ((129, 60), 129), ((64, 64), 60)]
_IMAGE = (9, 7)
# (O, C / groups, height, width), images, geometry.
_CONV2D = [
    ((7, 3, 3, 3), 7, Geometry("conv2d", padding=(1, 1))),
    ((5, 4, 1, 1), 1, Geometry("conv2d")),
    ((6, 2, 3, 2), 60, Geometry("conv2d", stride=(2, 3), padding=(0, 2))),
    ((33, 3, 3, 3), 1, Geometry("conv2d", padding=(2, 1), dilation=(2, 1))),
    ((6, 2, 3, 3), 7, Geometry("conv2d", stride=(2, 1), padding=(1, 1), groups=3)),
    ((8, 1, 3, 3), 129, Geometry("conv2d", padding=(1, 1), groups=8)),
]
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def workloads() -> Iterator[Workload]:
    """Small layers of every kind, in every dtype, on the CPU and on the GPU where there is one."""
    shapes = [(shape, rows, Geometry(), None) for shape, rows in _LINEAR]
    images = [(shape, rows, geometry, _IMAGE) for shape, rows, geometry in _CONV2D]
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for device, dtype, layer in itertools.product(devices, _DTYPES, (*shapes, *images)):
        shape, rows, geometry, image = layer
        place, threads = torch.device(device), torch.get_num_threads()
        yield Workload(shape, geometry, rows, image, dtype, dtype, place, threads=threads)


def cases(backend: Backend, work: Workload) -> Iterator[Case]:
    """The layer with each of its masks: all, one, half, a tenth with empty rows and columns, none."""
    generator = torch.Generator().manual_seed(0)
    for mask in _masks(work, generator):
        density = float(mask.double().mean())
        yield Case(backend, replace(work, density=density), mask.to(work.device), generator)


def _masks(work: Workload, generator: torch.Generator) -> Iterator[Tensor]:
    scores = torch.rand(work.shape, generator=generator)
    yield torch.ones(work.shape, dtype=torch.bool)
    yield scores == scores.max()
    if work.weights > 1:
        yield scores <= scores.median()
        tenth = scores <= scores.flatten().kthvalue(math.ceil(work.weights / 10)).values
        # Every second row and every third column empty.
        tenth[1::2] = False
        tenth[:, 1::3] = False
        tenth.view(-1)[0] = True
        yield tenth
    # Global pruning can leave a small layer with nothing.
    if 1 < work.weights < 250:
        yield torch.zeros(work.shape, dtype=torch.bool)


@dataclass(frozen=True)
class Case:
    """One mask of one layer, the random tensors for it, and what the reference makes of them."""

    backend: Backend
    work: Workload
    mask: Tensor
    generator: torch.Generator

    def pack(self) -> SparseOp:
        return self.backend.pack(self.mask, self.backend.layout(self.work))

    def batches(self) -> tuple[int, ...]:
        """The batch sizes to try. Convolutions share them out, since the reference takes long for many images."""
        return BATCHES if self.work.geometry.kind == "linear" else (self.work.rows, self.another_batch())

    def another_batch(self) -> int:
        """A batch size that the workload did not announce."""
        return 1 if self.work.rows == 7 else 7

    def random(self, *shape: int) -> Tensor:
        # Positive, so that no sum cancels: what remains of the relative error is the kernel's.
        numbers = torch.rand(shape, generator=self.generator) + 0.5
        return bordered(numbers.to(self.work.device, self.work.compute_dtype))

    def signs(self, *shape: int) -> Tensor:
        """-1 and +1, about half of each."""
        positive = torch.rand(shape, generator=self.generator) < 0.5
        return torch.where(positive, 1, -1).to(self.work.device, self.work.compute_dtype)

    def weight(self) -> Tensor:
        return self.random(*self.work.shape)

    def bias(self) -> Tensor:
        return self.random(self.work.shape[0])

    def input(self, rows: int) -> Tensor:
        return self.random(*replace(self.work, rows=rows).input_shape())

    def values(self, op: SparseOp, weight: Tensor) -> Tensor:
        """The weight in native order, in the midst of NaN."""
        return bordered(op.pack_values(weight))

    def expected(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        g = self.work.geometry
        if g.kind == "linear":
            return reference.linear(x, weight, self.mask, bias)
        return reference.conv2d(x, weight, self.mask, bias, g.stride, g.padding, g.dilation, g.groups)

    def expected_backward(self, dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        g = self.work.geometry
        if g.kind == "linear":
            return reference.linear_backward(dy, x, weight, self.mask)
        return reference.conv2d_backward(dy, x, weight, self.mask, g.stride, g.padding, g.dilation, g.groups)

    def compare(self, what: str, got: Tensor, expected: Tensor) -> Broken:
        """The rule that `what` is what the reference gives, in shape, dtype and numbers."""
        dtype = self.work.compute_dtype
        if got.shape != expected.shape or got.dtype != dtype:
            wanted, given = tuple(expected.shape), tuple(got.shape)
            yield f"{what}: shape and dtype", f"expected {wanted} of {dtype}, got {given} of {got.dtype}"
        elif not math.isfinite(error := relative_error(got, expected)) and not bool(got.isfinite().all()):
            yield f"{what} is finite", "it is not: memory was read that is none of the inputs, or never written"
        elif error > TOLERANCE[dtype]:
            yield f"{what} agrees with the reference", f"relative error {error:.1e}, allowed {TOLERANCE[dtype]:.0e}"
