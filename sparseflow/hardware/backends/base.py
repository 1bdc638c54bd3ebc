"""The protocol of a backend: the whole of the hardware abstraction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sparseflow.hardware.workload import Workload


@dataclass(frozen=True)
class Cost:
    """Seconds of one training step of one layer, and the bytes that it keeps.

    `update` is the optimizer's pass over the values, which a backend with short values makes cheaper.
    `bytes` counts values, gradient, two optimizer moments and indices. `measured` is False for a model's answer.
    """

    forward: float
    dgrad: float
    wgrad: float
    update: float
    bytes: int
    measured: bool

    @property
    def seconds(self) -> float:
        """The whole step of this layer."""
        return self.forward + self.dgrad + self.wgrad + self.update


class SparseOp(Protocol):
    """One layer's structure for one backend: immutable, holds indices but never values.

    `values` is a tensor of at least `nnz` numbers in the native order of `layout`. Padding among them is zero
    after `pack_values`, gets zero gradient and is ignored by `unpack_values`; `unpack_values(ones)` is the mask.
    An op keeps nothing between a forward and its backward: a layer may run twice before either.
    """

    @property
    def layout(self) -> str: ...
    @property
    def nnz(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Bytes of the index structure."""
        ...

    def pack_values(self, weight: Tensor) -> Tensor:
        """Dense (O, I) or (O, C, H, W) → native order, a new tensor."""
        ...

    def unpack_values(self, values: Tensor) -> Tensor:
        """Native order → dense, +0.0 at pruned places, a new tensor."""
        ...

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """x (B, I) → (B, O), or (B, C, H, W) → (B, O, H', W'); any number of rows and any strides."""
        ...

    def backward(self, dy: Tensor, x: Tensor, values: Tensor, need_dx: bool) -> tuple[Tensor | None, Tensor]:
        """(dx or None, dvalues) in one call, so that a backend may fuse dgrad and wgrad."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Its indices, so that a module can move and save them."""
        ...

    def with_tensors(self, tensors: dict[str, Tensor]) -> SparseOp:
        """The same op over moved indices."""
        ...


@runtime_checkable
class FusedOp(SparseOp, Protocol):
    """An op that also does bias gradient and ReLU inside its kernels, and can give its output feature-major.

    A feature-major tensor has the batch contiguous: (B, O) with stride(0) == 1, or (B, O, H, W) stored as CHWN.
    Layers call these two instead of `forward` and `backward` where an op has them; a backend need not.
    """

    def forward_fused(self, x: Tensor, values: Tensor, bias: Tensor | None, relu: bool, feature_major: bool) -> Tensor:
        """`forward`, then max(0, y) if `relu`; feature-major if asked for, else contiguous."""
        ...

    def backward_fused(
        self, dy: Tensor, x: Tensor, y: Tensor | None, values: Tensor, need_dx: bool, need_dbias: bool
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """(dx, dvalues, dbias), None where not needed. `y` is the forward's output if it did a ReLU, else None.

        dx is feature-major where x is.
        """
        ...


@runtime_checkable
class MasterOp(FusedOp, Protocol):
    """An op that multiplies in 16 bits by itself what is kept in float32: mixed precision without copies around it.

    Under autocast a layer casts x and gives float32 `values` and `bias` as they are to an op whose `compute_dtypes` has
    the dtype of x; to any other op it gives casts of them. The op makes whatever short copies it needs, sums in
    float32, and returns y and dx in the dtype of x, dvalues and dbias in float32.
    """

    @property
    def compute_dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes of x for which `values` and `bias` may be float32."""
        ...


@runtime_checkable
class PlacedOp(Protocol):
    """Of an op that says where its values belong: one look at its structure then serves all tensors that move."""

    def places(self) -> Tensor:
        """Of each value, in native order, its place in the flattened dense weight: int64 (nnz,); no padding."""
        ...


@runtime_checkable
class Backend(Protocol):
    """New hardware: one object with these five members, named by an entry point in `sparseflow.backends`."""

    @property
    def name(self) -> str: ...

    def unsupported(self, work: Workload) -> str | None:
        """Why this layer cannot run here, in words, or None."""
        ...

    def cost(self, work: Workload) -> Cost:
        """What a step of it costs, measured or modelled."""
        ...

    def layout(self, work: Workload) -> str:
        """The name of one native order: backend, version, geometry, tile sizes, with a slash between them.

        It begins with the backend's name, and one part is str(work.geometry), so that a plan can be checked against
        the layer. Never contains values or masks.
        """
        ...

    def pack(self, mask: Tensor, layout: str) -> SparseOp:
        """The op of a bool mask, on the mask's device. A pure function of its arguments, called once per mask.

        `ValueError` for a layout of another backend or version.
        """
        ...


@runtime_checkable
class Explains(Protocol):
    """A backend that has something to add to the reason of a plan, such as which of its kernels it chose and why."""

    def explain(self, work: Workload) -> str:
        """Some words without a full stop, for a workload that it supports."""
        ...


@runtime_checkable
class EmulatedBackend(Backend, Protocol):
    """A backend that shows here what another machine would do: its cost is that machine's, modelled.

    A plan shows the cost and never chooses the backend by itself, since seconds of two machines say nothing about
    which is faster on this one.
    """

    @property
    def machine(self) -> str:
        """Whose seconds these are."""
        ...
