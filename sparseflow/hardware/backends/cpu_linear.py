"""The op of a linear layer on the backend `cpu`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from sparseflow_kernels.cpu_linear import Linear
from sparseflow_kernels.cpu_structure import Structure, places, structure
from sparseflow_kernels.cpu_target import host


def pack_linear(mask: Tensor, layout: str, forward_block: int, backward_block: int) -> LinearOp:
    """The op of a bool (O, I) mask, its indices on the mask's device."""
    op = LinearOp(layout, structure(mask.cpu(), forward_block, backward_block))
    return op.with_tensors({name: tensor.to(mask.device) for name, tensor in op.tensors().items()})


@dataclass(frozen=True, eq=False)
class LinearOp:
    """The op of a linear layer."""

    layout: str
    structure: Structure
    _products: Linear = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_products", Linear(self.structure, host()))

    def __reduce__(self) -> tuple[type[LinearOp], tuple[str, Structure]]:
        # Prepared calls hold addresses of this process.
        return LinearOp, (self.layout, self.structure)

    @property
    def nnz(self) -> int:
        return self.structure.nnz

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def pack_values(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1).index_select(0, self.places())

    def unpack_values(self, values: Tensor) -> Tensor:
        shape = (self.structure.outputs, self.structure.inputs)
        dense = values.new_zeros(shape[0] * shape[1])
        return dense.scatter_(0, self.places(), values).view(shape)

    def places(self) -> Tensor:
        return places(self.structure).to(self.structure.rows.device)

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return self.forward_fused(x, values, bias, False, False)

    def backward(self, dy: Tensor, x: Tensor, values: Tensor, need_dx: bool) -> tuple[Tensor | None, Tensor]:
        dx, dvalues, _ = self.backward_fused(dy, x, None, values, need_dx, False)
        return dx, dvalues

    def forward_fused(self, x: Tensor, values: Tensor, bias: Tensor | None, relu: bool, feature_major: bool) -> Tensor:
        return self._products.forward(x, values, bias, relu, feature_major, torch.get_num_threads())

    def backward_fused(
        self, dy: Tensor, x: Tensor, y: Tensor | None, values: Tensor, need_dx: bool, need_dbias: bool
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        return self._products.backward(dy, x, y, values, need_dx, need_dbias, torch.get_num_threads())

    def tensors(self) -> dict[str, Tensor]:
        return {one.name: getattr(self.structure, one.name) for one in fields(self.structure)}

    def with_tensors(self, tensors: dict[str, Tensor]) -> LinearOp:
        return replace(self, structure=replace(self.structure, **tensors))
