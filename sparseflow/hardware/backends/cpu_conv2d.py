"""The op of a convolution on the backend `cpu`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from sparseflow.hardware.workload import Geometry
from sparseflow_kernels.cpu_conv import Conv
from sparseflow_kernels.cpu_conv_structure import ConvStructure, conv_structure
from sparseflow_kernels.cpu_target import host


def pack_conv2d(mask: Tensor, layout: str, geometry: Geometry) -> Conv2dOp:
    """The op of a bool (O, C / groups, height, width) mask, its indices on the mask's device."""
    g = geometry
    structure = conv_structure(mask.cpu(), g.stride, g.padding, g.dilation, g.groups)
    op = Conv2dOp(layout, tuple(mask.shape), structure)
    return op.with_tensors({name: tensor.to(mask.device) for name, tensor in op.tensors().items()})


@dataclass(frozen=True, eq=False)
class Conv2dOp:
    """The op of a convolution; images go in and out in the standard layout, whose copies are part of the kernels."""

    layout: str
    shape: tuple[int, ...]
    structure: ConvStructure
    _products: Conv = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_products", Conv(self.structure, host()))

    def __reduce__(self) -> tuple[type[Conv2dOp], tuple[str, tuple[int, ...], ConvStructure]]:
        # Prepared calls hold addresses of this process.
        return Conv2dOp, (self.layout, self.shape, self.structure)

    @property
    def nnz(self) -> int:
        return self.structure.nnz

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values()) + self._products.nbytes

    def pack_values(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1).index_select(0, self.places())

    def unpack_values(self, values: Tensor) -> Tensor:
        dense = values.new_zeros(torch.Size(self.shape).numel())
        return dense.scatter_(0, self.places(), values).view(self.shape)

    def places(self) -> Tensor:
        return self.structure.places()

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return self.forward_fused(x, values, bias, False, False)

    def backward(self, dy: Tensor, x: Tensor, values: Tensor, need_dx: bool) -> tuple[Tensor | None, Tensor]:
        dx, dvalues, _ = self.backward_fused(dy, x, None, values, need_dx, False)
        return dx, dvalues

    def forward_fused(self, x: Tensor, values: Tensor, bias: Tensor | None, relu: bool, feature_major: bool) -> Tensor:
        y = self._products.forward(x, values, bias, relu, torch.get_num_threads())
        return _feature_major(y) if feature_major else y

    def backward_fused(
        self, dy: Tensor, x: Tensor, y: Tensor | None, values: Tensor, need_dx: bool, need_dbias: bool
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        threads = torch.get_num_threads()
        dx, dvalues, dbias = self._products.backward(dy, x, y, values, need_dx, need_dbias, threads)
        chained = dx is not None and x.stride(0) == 1 and x.shape[0] > 1
        return _feature_major(dx) if dx is not None and chained else dx, dvalues, dbias

    def tensors(self) -> dict[str, Tensor]:
        found = {one.name: getattr(self.structure, one.name) for one in fields(self.structure)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def with_tensors(self, tensors: dict[str, Tensor]) -> Conv2dOp:
        indices: dict[str, Any] = {**tensors}
        return replace(self, structure=replace(self.structure, **indices))


def _feature_major(images: Tensor) -> Tensor:
    # (B, C, H, W) stored as CHWN.
    return images.movedim(0, -1).contiguous().movedim(-1, 0)
