"""Masked training with dense products, on anything that torch runs on.

`dense` keeps the weight matrix as its values and masks the gradient. `dense-compact` keeps only the kept values:
the arithmetic is dense, but gradients, optimizer state, traffic and shards are nnz long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sparseflow.hardware.backends.base import Cost
from sparseflow.hardware.backends.dense_products import gradients, product
from sparseflow.hardware.backends.rates import rates
from sparseflow.hardware.workload import Geometry, Workload


class Dense:
    """Values = the weight matrix in its own shape, zero where pruned; the gradient is masked in `backward`."""

    name = "dense"

    def unsupported(self, work: Workload) -> str | None:
        return _unsupported(work)

    def cost(self, work: Workload) -> Cost:
        # An element-wise optimizer with two moments reads and writes about seven numbers a value.
        return _cost(work, update_bytes=7 * 4 * work.weights, extra_bytes=4 * work.weights, kept=work.weights)

    def layout(self, work: Workload) -> str:
        return f"dense/1/{work.geometry}"

    def pack(self, mask: Tensor, layout: str) -> DenseOp:
        _check_layout(self.name, layout)
        return DenseOp(layout, mask.clone(), int(mask.sum()))


class DenseCompact:
    """Values = the kept weights in row-major order, scattered into a scratch weight for each product."""

    name = "dense-compact"

    def unsupported(self, work: Workload) -> str | None:
        return _unsupported(work)

    def cost(self, work: Workload) -> Cost:
        nnz = round(work.density * work.weights)
        # Forward and dgrad each clear and fill the scratch weight, wgrad gathers: 8 bytes of index a value.
        scatter = (4 * work.weights + 16 * nnz) * (2 if work.needs_dx else 1) + 16 * nnz
        return _cost(work, update_bytes=7 * 4 * nnz, extra_bytes=scatter, kept=nnz, index_bytes=8 * nnz)

    def layout(self, work: Workload) -> str:
        return f"dense-compact/1/{work.geometry}"

    def pack(self, mask: Tensor, layout: str) -> CompactOp:
        _check_layout(self.name, layout)
        return CompactOp(layout, tuple(mask.shape), mask.flatten().nonzero().squeeze(1))


@dataclass(frozen=True, eq=False)
class DenseOp:
    """The op of `dense`."""

    layout: str
    mask: Tensor
    nnz: int
    # By bytes of a number: an integer mask, all bits set where kept. Clearing bits takes a twentieth of the time of
    # torch.where, and unlike a product with 0 it also clears the inf of a pruned place.
    _bits: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)

    @property
    def nbytes(self) -> int:
        return self.mask.nbytes + sum(bits.nbytes for bits in self._bits.values())

    def pack_values(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, 0.0).contiguous()

    def unpack_values(self, values: Tensor) -> Tensor:
        return torch.where(self.mask, values, 0.0)

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        geometry = _geometry(self.layout)
        _check(geometry, x, values, self.mask.shape, self.mask.shape)
        return product(geometry, x, values, bias)

    def backward(self, dy: Tensor, x: Tensor, values: Tensor, need_dx: bool) -> tuple[Tensor | None, Tensor]:
        geometry = _geometry(self.layout)
        _check(geometry, x, values, self.mask.shape, self.mask.shape)
        _check_gradient(dy, x, self.mask.shape)
        dx, dweight = gradients(geometry, dy, x, lambda: values, values.shape, need_dx)
        assert dweight is not None
        if self.nnz < self.mask.numel():
            dweight.view(_INTEGERS[dweight.itemsize]).bitwise_and_(self._kept_bits(dweight.itemsize))
        return dx, dweight

    def tensors(self) -> dict[str, Tensor]:
        return {"mask": self.mask}

    def with_tensors(self, tensors: dict[str, Tensor]) -> DenseOp:
        return DenseOp(self.layout, tensors["mask"], self.nnz)

    def _kept_bits(self, itemsize: int) -> Tensor:
        if itemsize not in self._bits:
            self._bits[itemsize] = self.mask.to(_INTEGERS[itemsize]).neg_()
        return self._bits[itemsize]


@dataclass(frozen=True, eq=False)
class CompactOp:
    """The op of `dense-compact`; `index` holds the flat positions of the kept weights, ascending."""

    layout: str
    shape: tuple[int, ...]
    index: Tensor

    @property
    def nnz(self) -> int:
        return self.index.numel()

    @property
    def nbytes(self) -> int:
        return self.index.nbytes

    def pack_values(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1).index_select(0, self.index)

    def unpack_values(self, values: Tensor) -> Tensor:
        scratch = values.new_zeros(math.prod(self.shape))
        return scratch.scatter_(0, self.index, values).view(self.shape)

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        geometry = _geometry(self.layout)
        _check(geometry, x, values, self.index.shape, self.shape)
        return product(geometry, x, self.unpack_values(values), bias)

    def backward(self, dy: Tensor, x: Tensor, values: Tensor, need_dx: bool) -> tuple[Tensor | None, Tensor]:
        geometry = _geometry(self.layout)
        _check(geometry, x, values, self.index.shape, self.shape)
        _check_gradient(dy, x, self.shape)
        # The scratch weight is made anew rather than saved: between forward and backward only nnz values stay.
        dx, dweight = gradients(geometry, dy, x, lambda: self.unpack_values(values), self.shape, need_dx)
        assert dweight is not None
        return dx, self.pack_values(dweight)

    def tensors(self) -> dict[str, Tensor]:
        return {"index": self.index}

    def with_tensors(self, tensors: dict[str, Tensor]) -> CompactOp:
        return replace(self, index=tensors["index"])


def _geometry(layout: str) -> Geometry:
    return _PARSED.get(layout) or _PARSED.setdefault(layout, Geometry.parse(layout.split("/")[2]))


_PARSED: dict[str, Geometry] = {}

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _check_layout(name: str, layout: str) -> None:
    if not layout.startswith(f"{name}/1/"):
        raise ValueError(f"backend {name!r}: expected a layout that begins with '{name}/1/', got {layout!r}; plan anew")


def _check(geometry: Geometry, x: Tensor, values: Tensor, expected: tuple[int, ...], weight: tuple[int, ...]) -> None:
    width = weight[1] * geometry.groups
    if x.shape[1] != width:
        raise ValueError(f"expected x with {width} features or channels, got shape {tuple(x.shape)}")
    if values.shape != expected:
        raise ValueError(f"expected values of shape {tuple(expected)}, got {tuple(values.shape)}")


def _check_gradient(dy: Tensor, x: Tensor, weight: tuple[int, ...]) -> None:
    expected = (x.shape[0], weight[0])
    if dy.shape[:2] != expected:
        raise ValueError(f"expected dy of shape {expected} or such images, got {tuple(dy.shape)}")


def _unsupported(work: Workload) -> str | None:
    if not work.dtype.is_floating_point:
        return f"computes in floating point, not {work.dtype}"
    return None


def _cost(work: Workload, update_bytes: int, extra_bytes: int, kept: int, index_bytes: int = 0) -> Cost:
    machine = rates(work.device, work.compute_dtype, work.threads)
    seconds = work.product_flops / machine.flops
    return Cost(
        forward=seconds,
        dgrad=seconds if work.needs_dx else 0.0,
        wgrad=seconds + extra_bytes / machine.bandwidth,
        update=update_bytes / machine.bandwidth,
        bytes=4 * work.dtype.itemsize * kept + (index_bytes or work.weights),
        measured=False,
    )
