"""A backend for sparseflow: linear layers as torch's own sparse matrices, in coordinate format.

Shapes: B rows, I in, O out, Z kept weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparseflow.hardware.backends import Cost
from sparseflow.hardware.workload import Workload

_LAYOUT = "torch-coo/1/linear"


class TorchCoo:
    """Values = the kept weights in row-major order, no padding."""

    name = "torch-coo"

    def unsupported(self, work: Workload) -> str | None:
        if work.device.type != "cpu":
            return f"runs on the CPU, not on {work.device.type}"
        for dtype in (work.dtype, work.compute_dtype):
            if dtype not in (torch.float32, torch.float64):
                return f"runs float32 and float64, not {str(dtype).removeprefix('torch.')}"
        return None if work.geometry.kind == "linear" else "runs linear layers only"

    def cost(self, work: Workload) -> Cost:
        # A guess is enough: a plan measures where it knows the batch. Every number read takes 0.4 nanoseconds.
        nnz = max(1, round(work.density * work.weights))
        product, update = 2 * nnz * work.rows * 4e-10, 7 * nnz * 4e-10
        dgrad = product if work.needs_dx else 0.0
        return Cost(product, dgrad, product, update, bytes=(4 * work.dtype.itemsize + 16) * nnz, measured=False)

    def layout(self, work: Workload) -> str:
        return _LAYOUT

    def pack(self, mask: Tensor, layout: str) -> CooOp:
        if layout != _LAYOUT:
            raise ValueError(f"backend 'torch-coo': expected layout {_LAYOUT!r}, got {layout!r}; plan anew")
        outputs, inputs = mask.shape
        # In row-major order, which torch calls coalesced.
        return CooOp(layout, (outputs, inputs), mask.nonzero().t().contiguous())


@dataclass(frozen=True, eq=False)
class CooOp:
    """One mask: the row and column of each value, as an int64 (2, Z) tensor."""

    layout: str
    shape: tuple[int, int]
    places: Tensor

    @property
    def nnz(self) -> int:
        return self.places.shape[1]

    @property
    def nbytes(self) -> int:
        return self.places.nbytes

    def pack_values(self, weight_OI: Tensor) -> Tensor:
        rows, columns = self.places
        return weight_OI[rows, columns]

    def unpack_values(self, values_Z: Tensor) -> Tensor:
        rows, columns = self.places
        return values_Z.new_zeros(self.shape).index_put((rows, columns), values_Z)

    def forward(self, x_BI: Tensor, values_Z: Tensor, bias_O: Tensor | None) -> Tensor:
        self._check(x_BI, values_Z)
        y_OB = self._matrix(values_Z) @ x_BI.t()
        # Contiguous as (B, O), so that nobody's y.view(-1) breaks.
        y_BO = y_OB.t().contiguous()
        return y_BO if bias_O is None else y_BO.add_(bias_O)

    def backward(self, dy_BO: Tensor, x_BI: Tensor, values_Z: Tensor, need_dx: bool) -> tuple[Tensor | None, Tensor]:
        self._check(x_BI, values_Z)
        dx_BI = (self._matrix(values_Z).t() @ dy_BO.t()).t() if need_dx else None
        # Z x B numbers: simple, and what real kernels avoid.
        rows, columns = self.places
        return dx_BI, (dy_BO.t()[rows] * x_BI.t()[columns]).sum(1)

    def tensors(self) -> dict[str, Tensor]:
        return {"places": self.places}

    def with_tensors(self, tensors: dict[str, Tensor]) -> CooOp:
        return replace(self, places=tensors["places"])

    def _matrix(self, values_Z: Tensor) -> Tensor:
        return torch.sparse_coo_tensor(self.places, values_Z, self.shape, is_coalesced=True, check_invariants=False)

    def _check(self, x_BI: Tensor, values_Z: Tensor) -> None:
        if x_BI.dim() != 2 or x_BI.shape[1] != self.shape[1]:
            raise ValueError(f"expected x of shape (rows, {self.shape[1]}), got {tuple(x_BI.shape)}")
        if values_Z.shape != (self.nnz,):
            raise ValueError(f"expected {self.nnz} values, got shape {tuple(values_Z.shape)}")
