"""A backend with fused ops, in plain torch: what layers and plans make of a FusedOp, without any kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow.hardware.backends import Cost
from sparseflow.hardware.backends.dense import Dense, DenseOp
from sparseflow.hardware.workload import Workload

# (relu, x is feature-major, y is feature-major) of each forward since it was last cleared.
calls: list[tuple[bool, bool, bool]] = []


class Fused:
    name = "fused"

    def unsupported(self, work: Workload) -> str | None:
        return None

    def cost(self, work: Workload) -> Cost:
        return Cost(work.density, 0.0, 0.0, 0.0, 1, False)

    def layout(self, work: Workload) -> str:
        return f"fused/1/{work.geometry}"

    def pack(self, mask: Tensor, layout: str) -> FusedDense:
        return FusedDense(Dense().pack(mask, layout.replace("fused/", "dense/")))


@dataclass(frozen=True, eq=False)
class FusedDense:
    dense: DenseOp

    @property
    def layout(self) -> str:
        return self.dense.layout.replace("dense/", "fused/")

    @property
    def nnz(self) -> int:
        return self.dense.nnz

    @property
    def nbytes(self) -> int:
        return self.dense.nbytes

    def pack_values(self, weight: Tensor) -> Tensor:
        return self.dense.pack_values(weight)

    def unpack_values(self, values: Tensor) -> Tensor:
        return self.dense.unpack_values(values)

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        raise AssertionError("this op is fused")

    def backward(self, dy: Tensor, x: Tensor, values: Tensor, need_dx: bool) -> tuple[Tensor | None, Tensor]:
        raise AssertionError("this op is fused")

    def forward_fused(self, x: Tensor, values: Tensor, bias: Tensor | None, relu: bool, feature_major: bool) -> Tensor:
        calls.append((relu, is_feature_major(x), feature_major))
        y = self.dense.forward(x, values, bias)
        y = y.clamp(min=0) if relu else y
        return to_feature_major(y) if feature_major else y.contiguous()

    def backward_fused(
        self, dy: Tensor, x: Tensor, y: Tensor | None, values: Tensor, need_dx: bool, need_dbias: bool
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        dy = dy if y is None else torch.where(y > 0, dy, 0.0)
        dx, dvalues = self.dense.backward(dy, x, values, need_dx)
        dbias = dy.sum(0 if dy.dim() == 2 else (0, 2, 3)) if need_dbias else None
        return dx if dx is None or not is_feature_major(x) else to_feature_major(dx), dvalues, dbias

    def tensors(self) -> dict[str, Tensor]:
        return self.dense.tensors()

    def with_tensors(self, tensors: dict[str, Tensor]) -> FusedDense:
        return FusedDense(self.dense.with_tensors(tensors))


def is_feature_major(tensor: Tensor) -> bool:
    return tensor.movedim(0, -1).is_contiguous()


def to_feature_major(tensor: Tensor) -> Tensor:
    """A copy, and not a view of one: autograd lets nobody write into a view that an op returns."""
    return torch.empty_strided(
        tensor.shape, tensor.movedim(0, -1).contiguous().movedim(-1, 0).stride(), dtype=tensor.dtype
    ).copy_(tensor)
