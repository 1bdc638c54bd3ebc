"""Activations as the Triton kernels read and write them: features in rows, tokens contiguous.

A token is a row of a linear layer's input, or an output pixel of an image. Nothing is copied that has these strides.

Shapes: B rows or images, I in, O out, C channels, H W image, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from sparseflow_kernels.triton_conv import (
    Axes,
    conv_gradient,
    conv_input,
    conv_lines,
    dgrad_lines,
    interleaved,
)
from sparseflow_kernels.triton_lines import Lines, linear_lines

# Rows of a copy begin at multiples of so many numbers, for wide loads.
_ALIGNED = 16


class Tokens(Protocol):
    """The batches of one shape: what each product reads, and the tensors that its result becomes."""

    def input(self, x: Tensor) -> tuple[Tensor, Lines]:
        """What the forward and the weight gradient read."""
        ...

    def gradient(self, dy: Tensor) -> tuple[Tensor, Lines]:
        """What the input gradient reads, of a feature-major dy."""
        ...

    def cotangent(self, dy: Tensor) -> Tensor:
        """(O, T): what the weight gradient reads besides, of a feature-major dy."""
        ...

    def output(self, y_OT: Tensor) -> Tensor:
        """The forward's result as (B, O) or (B, O, H', W'), feature-major."""
        ...

    def input_gradient(self, dx: Tensor) -> Tensor:
        """The input gradient's result as (B, I) or (B, C, H, W), feature-major."""
        ...


class Rows:
    """The input of a linear layer, (B, I)."""

    def input(self, x: Tensor) -> tuple[Tensor, Lines]:
        x_IB = feature_major(x).t()
        return x_IB, linear_lines(x_IB)

    def gradient(self, dy: Tensor) -> tuple[Tensor, Lines]:
        return self.input(dy)

    def cotangent(self, dy: Tensor) -> Tensor:
        return dy.t()

    def output(self, y_OT: Tensor) -> Tensor:
        features, rows = y_OT.shape
        return _owned(y_OT, (rows, features), (1, rows))

    def input_gradient(self, dx: Tensor) -> Tensor:
        return self.output(dx)


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size. `channels` in and `outputs` out."""

    axes: Axes
    images: int
    channels: int
    outputs: int
    device: torch.device

    @cached_property
    def _lines(self) -> Lines:
        return conv_lines(self.axes, self.channels, self.images, self.device)

    @cached_property
    def _gradient_lines(self) -> Lines:
        return dgrad_lines(self.axes, self.outputs, self.images, self.device)

    def input(self, x: Tensor) -> tuple[Tensor, Lines]:
        return conv_input(x, self.axes), self._lines

    def gradient(self, dy: Tensor) -> tuple[Tensor, Lines]:
        return conv_gradient(dy, self.axes), self._gradient_lines

    def cotangent(self, dy: Tensor) -> Tensor:
        return dy.permute(1, 2, 3, 0).reshape(self.outputs, -1)

    def output(self, y_OT: Tensor) -> Tensor:
        height, width = (axis.out for axis in self.axes)
        return _images(y_OT, (self.images, self.outputs, height, width))

    def input_gradient(self, dx: Tensor) -> Tensor:
        whole = interleaved(dx, self.axes, self.images)
        return _images(whole, tuple(whole.shape))


def feature_major(x: Tensor) -> Tensor:
    """x itself where its batch is contiguous, else one copy; (B, I), or (B, C, H, W) stored as CHWN."""
    return x if is_feature_major(x) else empty_feature_major(x).copy_(x)


def to_feature_major(y: Tensor) -> Tensor:
    """y with its batch contiguous and no gaps: y itself, or a copy that is no view of another tensor."""
    rest_first = y.movedim(0, -1)
    if rest_first.is_contiguous():
        return y
    copy = rest_first.contiguous()
    return _owned(copy, tuple(y.shape), copy.movedim(-1, 0).stride())


def is_feature_major(x: Tensor) -> bool:
    """Whether kernels can read x as it lies: rows of features, tokens contiguous; between rows there may be gaps."""
    if x.dim() == 4:
        return x.permute(1, 2, 3, 0).is_contiguous()
    rows, features = x.shape
    return (rows == 1 or x.stride(0) == 1) and (features == 1 or x.stride(1) >= rows)


def empty_feature_major(x: Tensor) -> Tensor:
    """Memory for a copy of x. Rows of a matrix are aligned for wide loads."""
    if x.dim() == 4:
        return x.new_empty(*x.shape[1:], x.shape[0]).permute(3, 0, 1, 2)
    rows, features = x.shape
    pitch = -(-rows // _ALIGNED) * _ALIGNED
    return x.new_empty(features, pitch)[:, :rows].t()


def _images(tokens: Tensor, shape: tuple[int, ...]) -> Tensor:
    images, _, height, width = shape
    return _owned(tokens, shape, (1, height * width * images, width * images, images))


def _owned(tensor: Tensor, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """The memory of a tensor in another shape, and no view of it: autograd lets nobody write into a view of an op's."""
    return tensor.new_empty(0).set_(tensor.untyped_storage(), tensor.storage_offset(), shape, stride)
