"""Convolutions as products over lines: how images lie in memory, feature-major and padded with zeros.

The forward and the weight gradient gather from the phases of x, (C, phases, rows, columns, N); the input gradient from
dy, (O, rows, columns, N), and gives one matrix for each phase of x, which are interleaved at the end. Everything has
stride 1 here: see `triton_axis`. Lines depend on nothing but sizes, so that they can be kept.

Shapes: N images, C channels, O outputs, H W image.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from sparseflow_kernels.triton_axis import Axis
from sparseflow_kernels.triton_lines import Lines

# Height and width.
Axes = tuple[Axis, Axis]


def conv_axes(
    image: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Axes:
    """Height and width of one convolution. `ValueError` where the kernel is larger than the padded image."""
    height, width = (Axis(*numbers) for numbers in zip(image, kernel, stride, padding, dilation))
    if height.out < 1 or width.out < 1:
        raise ValueError(f"expected an image at least as large as the kernel {kernel} after padding, got {image}")
    return height, width


def conv_lines(axes: Axes, channels: int, images: int, device: torch.device) -> Lines:
    """The lines of `conv_input`, for the forward and the weight gradient: tokens are (row of y, column of y, image)."""
    height, width = axes
    rows, columns = height.out + height.span, width.out + width.span
    plane = rows * columns * images
    phases = [height.phases, width.phases]
    taps = [
        (phases[0].index(height.phase(i)) * len(phases[1]) + phases[1].index(width.phase(j))) * plane
        + ((height.shift(i) - height.low) * columns + width.shift(j) - width.low) * images
        for i, j in product(range(height.kernel), range(width.kernel))
    ]
    each = len(phases[0]) * len(phases[1]) * plane
    return _lines((height.out, width.out), columns, images, channels, each, taps, device)


def dgrad_lines(axes: Axes, outputs: int, images: int, device: torch.device) -> Lines:
    """The lines of `conv_gradient`, for the input gradient: tokens are (row and column of cells of x, image)."""
    height, width = axes
    columns = width.cells + width.span
    taps = [
        ((height.high - height.shift(i)) * columns + width.high - width.shift(j)) * images
        for i, j in product(range(height.kernel), range(width.kernel))
    ]
    each = (height.cells + height.span) * columns * images
    return _lines((height.cells, width.cells), columns, images, outputs, each, taps, device)


def conv_input(x: Tensor, axes: Axes) -> Tensor:
    """What the forward reads of x (N, C, H, W), of any strides: contiguous, and x itself where it serves as it is."""
    height, width = axes
    shape = (height.out + height.span, width.out + width.span)
    simple = height.stride == width.stride == 1 and (height.low, width.low) == (0, 0)
    if simple and shape == x.shape[2:]:
        return x.permute(1, 2, 3, 0).contiguous()
    pairs = list(product(height.phases, width.phases))
    padded = x.new_zeros(x.shape[1], len(pairs), *shape, x.shape[0])
    images = x.permute(1, 2, 3, 0)
    for number, (a, b) in enumerate(pairs):
        _place(images[:, a :: height.stride, b :: width.stride], padded[:, number], (-height.low, -width.low))
    return padded


def conv_gradient(dy: Tensor, axes: Axes) -> Tensor:
    """What the input gradient reads of dy (N, O, H', W'), of any strides: contiguous, dy itself where it serves."""
    height, width = axes
    shape = (height.cells + height.span, width.cells + width.span)
    if (height.high, width.high) == (0, 0) and shape == dy.shape[2:]:
        return dy.permute(1, 2, 3, 0).contiguous()
    padded = dy.new_zeros(dy.shape[1], *shape, dy.shape[0])
    _place(dy.permute(1, 2, 3, 0), padded, (height.high, width.high))
    return padded


def interleaved(phases: Tensor, axes: Axes, images: int) -> Tensor:
    """dx (N, C, H, W), stored as CHWN, of the product's result (sh sw C, tokens)."""
    height, width = axes
    parts = phases.view(height.stride, width.stride, -1, height.cells, width.cells, images)
    cells = parts.permute(2, 3, 0, 4, 1, 5)
    whole = cells.reshape(-1, height.cells * height.stride, width.cells * width.stride, images)
    return whole[:, : height.size, : width.size].contiguous().permute(3, 0, 1, 2)


def _lines(
    shape: tuple[int, int], pitch: int, images: int, channels: int, each: int, taps: list[int], device: torch.device
) -> Lines:
    """Lines over planes with `pitch` columns; `shape`: rows and columns of tokens, `each`: elements of a channel."""
    rows, columns = shape
    channel = torch.arange(channels, device=device) * each
    table = (channel[:, None] + torch.tensor(taps, device=device)).flatten()
    if pitch == columns:
        return Lines(table.numel(), 1, rows * columns * images, 0, channels * each, None, table, images)
    offsets = torch.arange(rows, device=device) * (pitch * images)
    return Lines(table.numel(), rows, columns * images, 0, channels * each, offsets, table, images)


def _place(image: Tensor, plane: Tensor, origin: tuple[int, int]) -> None:
    """Copies (C, h, w, N) into a larger or smaller zeroed one, its first cell at `origin`, which may lie outside."""
    source, target = [], []
    for dim in (0, 1):
        first, last = max(origin[dim], 0), min(origin[dim] + image.shape[1 + dim], plane.shape[1 + dim])
        target.append(slice(first, max(last, first)))
        source.append(slice(first - origin[dim], max(last, first) - origin[dim]))
    plane[:, target[0], target[1]] = image[:, source[0], source[1]]
