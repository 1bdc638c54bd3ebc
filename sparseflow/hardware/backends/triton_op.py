"""The op of the backend `triton`: canonical values, and for each of its three products a kernel of its own.

Shapes: B rows or images, I in, O out, C channels, Z kept weights, T tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sparseflow.hardware.backends.dense_products import gradients, product
from sparseflow.hardware.backends.triton_choice import DTYPES, WHICH, Layout, Which
from sparseflow.hardware.backends.triton_parts import Part, multiply, parts_of, weight_gradient
from sparseflow.hardware.backends.triton_tokens import (
    Images,
    Rows,
    Tokens,
    empty_feature_major,
    feature_major,
    is_feature_major,
    to_feature_major,
)
from sparseflow_kernels.triton_conv import Axes, conv_axes

# Image sizes whose tables are kept.
_SIZES = 8
_SHORT = (torch.bfloat16, torch.float16)


def pack(mask: Tensor, layout: Layout) -> TritonOp:
    """The op of a bool mask, on its device."""
    places = mask.flatten().nonzero().squeeze(1).int()
    return TritonOp(str(layout), tuple(mask.shape), places, parts_of(mask, layout))


@dataclass(frozen=True, eq=False)
class TritonOp:
    """A FusedOp and a MasterOp. `places`: int32 (Z,), where each value stands in the flattened weight.

    `parts` has the structure of each product that is not dense, by its name.
    """

    layout: str
    shape: tuple[int, ...]
    places: Tensor
    parts: dict[Which, Part]
    _images: dict[tuple[int, ...], Images] = field(init=False, repr=False, default_factory=dict)
    _captured: dict[tuple[int, ...], Images] = field(init=False, repr=False, default_factory=dict)

    def __reduce__(self) -> tuple[type[TritonOp], tuple[str, tuple[int, ...], Tensor, dict[Which, Part]]]:
        # Tables of image sizes are made again.
        return TritonOp, (self.layout, self.shape, self.places, self.parts)

    @property
    def nnz(self) -> int:
        return self.places.numel()

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def compute_dtypes(self) -> tuple[torch.dtype, ...]:
        return _SHORT

    def pack_values(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1).index_select(0, self.places)

    def unpack_values(self, values: Tensor) -> Tensor:
        dense = values.new_zeros(torch.Size(self.shape).numel())
        return dense.scatter_(0, self.places.long(), values).view(self.shape)

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return self.forward_fused(x, values, bias, False, False)

    def backward(self, dy: Tensor, x: Tensor, values: Tensor, need_dx: bool) -> tuple[Tensor | None, Tensor]:
        dx, dvalues, _ = self.backward_fused(dy, x, None, values, need_dx, False)
        return dx, dvalues

    def forward_fused(self, x: Tensor, values: Tensor, bias: Tensor | None, relu: bool, feature_major: bool) -> Tensor:
        self._check(x, values)
        self._check_bias(bias, x)
        if x.shape[0] == 0:
            return self._dense_forward(x, values, bias, relu)
        part = self.parts.get("forward")
        if part is None:
            y = self._dense_forward(x, values, bias, relu)
        else:
            tokens = self._tokens(x)
            y = tokens.output(multiply(part, self._layout.forward, values, *tokens.input(x), bias, relu))
        return in_order(y, feature_major)

    def backward_fused(
        self, dy: Tensor, x: Tensor, y: Tensor | None, values: Tensor, need_dx: bool, need_dbias: bool
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        self._check(x, values)
        self._check_gradient(dy, x)
        sparse = "wgrad" in self.parts or (need_dx and "dgrad" in self.parts)
        passed = through(dy, y, sparse and x.shape[0] > 0)
        dbias = None
        if need_dbias:
            dbias = passed.sum(0 if dy.dim() == 2 else (0, 2, 3), dtype=torch.float32).to(values.dtype)
        if x.shape[0] == 0:
            return torch.empty_like(x) if need_dx else None, torch.zeros_like(values), dbias
        dx = self.input_gradient(passed, x, values) if need_dx else None
        dvalues = self.weight_gradient(passed, x, values)
        return dx if dx is None else in_order(dx, is_feature_major(x)), dvalues, dbias

    def input_gradient(self, dy: Tensor, x: Tensor, values: Tensor) -> Tensor:
        """dx in whatever strides come of it, for a dy that is feature-major where this product is not dense."""
        part = self.parts.get("dgrad")
        if part is None:
            weight = functools.partial(self._weight, values, x.dtype)
            dx, _ = gradients(self._layout.geometry, dy, x, weight, self.shape, True, False)
            assert dx is not None
            return dx
        tokens = self._tokens(x)
        return tokens.input_gradient(multiply(part, self._layout.dgrad, values, *tokens.gradient(dy), None, False))

    def weight_gradient(self, dy: Tensor, x: Tensor, values: Tensor) -> Tensor:
        """dvalues, for a dy that is feature-major where this product is not dense."""
        part = self.parts.get("wgrad")
        if part is None:
            weight = functools.partial(self._weight, values, x.dtype)
            _, dweight = gradients(self._layout.geometry, dy, x, weight, self.shape, False)
            assert dweight is not None
            return self.pack_values(dweight).to(values.dtype)
        tokens = self._tokens(x)
        cotangent = tokens.cotangent(dy)
        return weight_gradient(part, self._layout.wgrad, cotangent, *tokens.input(x), self.nnz, values.dtype)

    def tensors(self) -> dict[str, Tensor]:
        found = {"places": self.places}
        for which, part in self._own_parts().items():
            found |= {f"{which}.{name}": tensor for name, tensor in part.tensors().items()}
        return found

    def with_tensors(self, tensors: dict[str, Tensor]) -> TritonOp:
        moved = {
            id(part): part.with_tensors({name: tensors[f"{which}.{name}"] for name in part.tensors()})
            for which, part in self._own_parts().items()
        }
        parts = {which: moved[id(part)] for which, part in self.parts.items()}
        return replace(self, places=tensors["places"], parts=parts)

    @property
    def _layout(self) -> Layout:
        return _parsed(self.layout)

    def _own_parts(self) -> dict[Which, Part]:
        """Each part once: the weight gradient may use the forward's."""
        owners: dict[int, Which] = {}
        for which in WHICH:
            if which in self.parts:
                owners.setdefault(id(self.parts[which]), which)
        return {which: self.parts[which] for which in owners.values()}

    def _dense_forward(self, x: Tensor, values: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        short = None if bias is None else bias.to(x.dtype)
        y = product(self._layout.geometry, x, self._weight(values, x.dtype), short)
        return y.relu_() if relu else y

    def _weight(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        return self.unpack_values(values.to(dtype))

    def _tokens(self, x: Tensor) -> Tokens:
        geometry = self._layout.geometry
        if geometry.kind == "linear":
            return Rows()
        key = (x.shape[0], x.shape[2], x.shape[3])
        if key in self._captured:
            return self._captured[key]
        if key not in self._images:
            while len(self._images) >= _SIZES:
                self._images.pop(next(iter(self._images)))
            channels = self.shape[1] * geometry.groups
            self._images[key] = Images(self._axes(x), x.shape[0], channels, self.shape[0], self.places.device)
        if _captures(x):
            # Each replay of the graph reads these tables, however many other sizes come between.
            self._captured[key] = self._images[key]
        return self._images[key]

    def _axes(self, x: Tensor) -> Axes:
        geometry, kernel, image = self._layout.geometry, (self.shape[2], self.shape[3]), (x.shape[2], x.shape[3])
        return conv_axes(image, kernel, geometry.stride, geometry.padding, geometry.dilation)

    def _check(self, x: Tensor, values: Tensor) -> None:
        geometry = self._layout.geometry
        width = self.shape[1] * geometry.groups
        if x.dim() != (2 if geometry.kind == "linear" else 4) or x.shape[1] != width:
            raise ValueError(f"expected x with {width} features or channels, got shape {tuple(x.shape)}")
        if values.shape != self.places.shape:
            raise ValueError(f"expected values of shape {tuple(self.places.shape)}, got {tuple(values.shape)}")
        if not x.device == values.device == self.places.device:
            place = f"x on {x.device}, values on {values.device}, the mask packed on {self.places.device}"
            raise ValueError(f"expected all tensors on one device, got {place}; move the model or its input")
        mastered = values.dtype == torch.float32 and x.dtype in _SHORT
        if x.dtype not in DTYPES or (values.dtype != x.dtype and not mastered):
            raise ValueError(
                "expected x and values of one dtype, float32, bfloat16 or float16, or 16-bit x and float32 values; "
                f"got {x.dtype} and {values.dtype}"
            )

    def _check_bias(self, bias: Tensor | None, x: Tensor) -> None:
        if bias is None:
            return
        if bias.shape != self.shape[:1]:
            raise ValueError(f"expected a bias of shape ({self.shape[0]},), got {tuple(bias.shape)}")
        if bias.device != x.device:
            raise ValueError(f"expected the bias on {x.device}, where x is, got {bias.device}; move the model")

    def _check_gradient(self, dy: Tensor, x: Tensor) -> None:
        image = () if x.dim() == 2 else (axis.out for axis in self._axes(x))
        expected = (x.shape[0], self.shape[0], *image)
        if dy.shape != expected:
            raise ValueError(f"expected dy of shape {expected}, got {tuple(dy.shape)}")
        if dy.device != x.device:
            raise ValueError(f"expected dy on {x.device}, where x is, got {dy.device}")


def through(dy: Tensor, y: Tensor | None, sparse: bool) -> Tensor:
    """What of dy passes the ReLU whose output was y, feature-major for sparse kernels; one copy at the most."""
    if y is None:
        return feature_major(dy) if sparse else dy
    # In torch's words: where y is above 0, or NaN.
    passed = empty_feature_major(dy) if sparse else torch.empty_like(dy)
    torch.ops.aten.threshold_backward(dy, y, 0, grad_input=passed)
    return passed


def in_order(y: Tensor, major: bool) -> Tensor:
    """y as a layer gives it on: feature-major, or contiguous."""
    return to_feature_major(y) if major else y.contiguous()


def _captures(x: Tensor) -> bool:
    """Whether what is launched on x goes into a CUDA graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


@functools.cache
def _parsed(layout: str) -> Layout:
    return Layout.parse(layout)
