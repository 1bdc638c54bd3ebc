"""A third party's backend, right as it stands, and the same with one rule broken, for the conformance kit to find."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseflow.hardware.backends import Cost
from sparseflow.hardware.backends.dense import CompactOp, DenseCompact
from sparseflow.hardware.workload import Geometry, Workload


class Good(DenseCompact):
    """Ours under another name. Only small linear layers, so that the kit is quick."""

    name = "good"

    def unsupported(self, work: Workload) -> str | None:
        small = work.geometry == Geometry() and work.dtype == torch.float32 and work.shape == (7, 33)
        return None if small else "only one little layer"

    def layout(self, work: Workload) -> str:
        return f"good/1/{work.geometry}"

    def cost(self, work: Workload) -> Cost:
        return Cost(forward=1.0, dgrad=1.0, wgrad=1.0, update=1.0, bytes=1, measured=False)

    def pack(self, mask: Tensor, layout: str) -> CompactOp:
        if not layout.startswith("good/1/"):
            raise ValueError(f"not a layout of good: {layout}")
        return CompactOp(layout, tuple(mask.shape), mask.flatten().nonzero().squeeze(1))


class WithFault(Good):
    """`Good`, but for one fault; with an op that is fused where `fused`."""

    def __init__(self, fault: str, fused: bool = False) -> None:
        self.fault, self.fused = fault, fused
        self.calls = 0

    def unsupported(self, work: Workload) -> str | None:
        wordless = self.fault == "wordless" and work.geometry != Geometry()
        return " " if wordless else "broken" if self.fault == "nothing" else super().unsupported(work)

    def layout(self, work: Workload) -> str:
        self.calls += 1
        layouts = {"layout name": "goo/1/linear", "geometry": "good/1", "impure": f"good/1/linear/{self.calls}"}
        return layouts.get(self.fault, super().layout(work))

    def cost(self, work: Workload) -> Cost:
        return replace(super().cost(work), forward=float("inf")) if self.fault == "cost" else super().cost(work)

    def pack(self, mask: Tensor, layout: str) -> CompactOp:
        if self.fault != "any layout" and not layout.startswith("goo"):
            raise ValueError(layout)
        if self.fault == "writes mask":
            mask.view(-1)[-1] = True
        index = mask.flatten().nonzero().squeeze(1)
        if self.fault == "random":
            index = index[torch.randperm(len(index))]
        kind = FusedBroken if self.fused else Broken
        return kind(layout, tuple(mask.shape), index, self.fault)


# What a wrong op keeps from one call to the next.
_kept: dict[str, Tensor] = {}
_calls = itertools.count()


@dataclass(frozen=True, eq=False)
class Broken(CompactOp):
    """CompactOp with one fault."""

    fault: str = ""

    @property
    def nnz(self) -> int:
        return super().nnz + (self.fault == "nnz")

    def pack_values(self, weight: Tensor) -> Tensor:
        values = super().pack_values(weight)
        if self.fault == "padding":
            return torch.cat([values, values.new_ones(1)])
        return values + 1 if self.fault == "pack" else values

    def unpack_values(self, values: Tensor) -> Tensor:
        if self.fault == "padding":
            values = values[:-1]
        dense = super().unpack_values(values)
        return torch.where(dense == 0, -0.0, dense) if self.fault == "sign" else dense

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        x = self._prepared(x, values)
        if self.fault == "state":
            _kept["x"] = x
        y = F.linear(x, self.unpack_values(values), None if self.fault == "bias" else bias)
        if self.fault == "forward noise":
            y = y * (1 + 1e-6 * (next(_calls) % 2))
        return y.t().contiguous().t() if self.fault == "y strides" else y

    def backward(self, dy: Tensor, x: Tensor, values: Tensor, need_dx: bool) -> tuple[Tensor | None, Tensor]:
        x = self._prepared(x, values)
        if self.fault == "state":
            x = _kept["x"][: x.shape[0]]
        if self.fault == "dense dy":
            dy = dy.as_strided(dy.shape, (dy.shape[1], 1))
        if self.fault == "writes dy" and dy.is_contiguous():
            dy.mul_(1.5)
        scale = 1.001 if self.fault == "gradient" or (self.fault == "needs dx" and not need_dx) else 1.0
        if self.fault == "backward noise":
            scale += 1e-6 * (next(_calls) % 2)
        wanted = (need_dx or self.fault == "useless dx") and self.fault != "dx"
        return dy @ self.unpack_values(values) if wanted else None, self.pack_values(dy.t() @ x) * scale

    def with_tensors(self, tensors: dict[str, Tensor]) -> Broken:
        return replace(self, index=tensors["index"].flip(0) if self.fault == "tensors" else tensors["index"])

    def _prepared(self, x: Tensor, values: Tensor) -> Tensor:
        """x as the faults about inputs leave it."""
        rows, width = x.shape
        if self.fault != "any width" and width != self.shape[1]:
            raise ValueError("x")
        if self.fault != "any length" and values.numel() != len(self.index) + (self.fault == "padding"):
            raise ValueError("values")
        match self.fault:
            case "any width":
                return F.pad(x, (0, self.shape[1] - width))
            case "writes x":
                x.mul_(2)
            case "writes beside x":
                x.as_strided((1,), (1,), x.storage_offset() - 1).fill_(0)
            case "rows only":
                return x.as_strided(x.shape, (width, 1))
            case "mixes features":
                return (
                    x if x.stride(1) == 1 else x.as_strided(x.shape, (1, rows))[:, : width - 1].repeat(1, 2)[:, :width]
                )
            case "reads beyond":
                return x + 0 * x.as_strided((rows, width), x.stride(), x.storage_offset() + 1)
            case "large batch":
                return x[:128].repeat(2, 1)[:rows]
            case "no empty batch" if not rows:
                raise RuntimeError("no rows")
        return x


@dataclass(frozen=True, eq=False)
class FusedBroken(Broken):
    """The same as a FusedOp, with faults of its own."""

    def forward_fused(self, x: Tensor, values: Tensor, bias: Tensor | None, relu: bool, feature_major: bool) -> Tensor:
        y = self.forward(x, values, None if self.fault == "fused bias" else bias)
        if relu and self.fault != "fused relu":
            y = y.clamp(min=0)
        if self.fault == "fused noise":
            y = y * (1 + 1e-6 * (next(_calls) % 2))
        if self.fault == "always feature-major" or (feature_major and self.fault != "never feature-major"):
            y = y.t().contiguous().t()
        return y

    def backward_fused(
        self, dy: Tensor, x: Tensor, y: Tensor | None, values: Tensor, need_dx: bool, need_dbias: bool
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        if y is not None:
            dy = self._through(dy, y)
        dx, dvalues = self.backward(dy, x, values, need_dx or self.fault == "fused dx")
        if dx is not None and x.stride(0) == 1 and self.fault != "dx strides":
            dx = dx.t().contiguous().t()
        rows = dy[: len(dy) // 2 + 1] if self.fault == "dbias" else dy
        return dx, dvalues, rows.sum(0) if need_dbias or self.fault == "useless dbias" else None

    def _through(self, dy: Tensor, y: Tensor) -> Tensor:
        """The gradient before the ReLU."""
        match self.fault:
            case "relu gradient":
                return dy
            case "relu at zero":
                return torch.where(y >= 0, dy, 0.0)
            case "y strides assumed":
                return torch.where(y.as_strided(y.shape, (y.shape[1], 1)) > 0, dy, 0.0)
            case "relu in place" if dy.stride(1) == 1:
                return dy.mul_(y > 0)
        return torch.where(y > 0, dy, 0.0)
