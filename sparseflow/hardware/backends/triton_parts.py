"""The structure of one product of a layer, and the kernels that use it: slices for gathers, panels for tensor cores."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sparseflow.hardware.backends.triton_choice import WHICH, Kind, Layout, Product, Which
from sparseflow_kernels import triton_sddmm, triton_spmm
from sparseflow_kernels.triton_axis import Axis
from sparseflow_kernels.triton_coo import Coo, conv_dgrad_coo, forward_coo, linear_dgrad_coo
from sparseflow_kernels.triton_lines import Lines
from sparseflow_kernels.triton_pack import refresh
from sparseflow_kernels.triton_sddmm import SddmmConfig, sddmm
from sparseflow_kernels.triton_slices import Slices, slices
from sparseflow_kernels.triton_spmm import SpmmConfig, spmm
from sparseflow_kernels.triton_tune import parse_config

Part = Slices
Config = SpmmConfig | SddmmConfig

_C = TypeVar("_C", SpmmConfig, SddmmConfig)
# By the kind of kernel, and whether it is the weight gradient's.
_KINDS: dict[tuple[Kind, bool], type[Config]] = {("gather", False): SpmmConfig, ("gather", True): SddmmConfig}


def parts_of(mask: Tensor, layout: Layout) -> dict[Which, Part]:
    """The structures that the products of a layout need, by product; one is shared where two can.

    `ValueError` for a configuration that is none of the kernel's.
    """
    found: dict[Which, Part] = {}
    for which in WHICH:
        product: Product = getattr(layout, which)
        if product.kind == "dense":
            continue
        _config(_KINDS[product.kind, which == "wgrad"], product.config)
        # The weight gradient reads the same as the forward; the input gradient has rows of its own.
        if which == "wgrad" and (product.kind, product.height) == (layout.forward.kind, layout.forward.height):
            found[which] = found["forward"]
        else:
            coo = _dgrad_coo(mask, layout) if which == "dgrad" else forward_coo(mask, layout.geometry.groups)
            found[which] = slices(coo.rows, coo.columns, coo.places, coo.shape, product.height)
    return found


def multiply(
    part: Part, product: Product, values: Tensor, x: Tensor, lines: Lines, bias: Tensor | None, relu: bool
) -> Tensor:
    """(rows, tokens) in the dtype of x: the forward, or the input gradient."""
    packed = refresh(values, [part.source], x.dtype)[0]
    return spmm(part, packed, x, lines, x.dtype, bias, relu, _config(SpmmConfig, product.config))


def weight_gradient(
    part: Part, product: Product, dy_OT: Tensor, x: Tensor, lines: Lines, nnz: int, dtype: torch.dtype
) -> Tensor:
    """dvalues (nnz,) of that dtype, in canonical order."""
    return sddmm(part, dy_OT, x, lines, nnz, dtype, _config(SddmmConfig, product.config))


def configs_of(
    product: Product, which: Which, dtype: torch.dtype, device: torch.device
) -> tuple[Config, Sequence[Config]]:
    """The configuration that a kernel has where nothing was measured, and those that may be faster."""
    if which == "wgrad":
        return triton_sddmm.default_config(dtype, device), triton_sddmm.CONFIGS[dtype.itemsize]
    return triton_spmm.default_config(dtype, device), triton_spmm.CONFIGS[dtype.itemsize]


@functools.cache
def _config(kind: type[_C], text: str) -> _C | None:
    return parse_config(kind, text) if text else None


def _dgrad_coo(mask: Tensor, layout: Layout) -> Coo:
    geometry = layout.geometry
    if geometry.kind == "linear":
        return linear_dgrad_coo(mask)
    # Which taps belong to which phase does not depend on the image's size.
    numbers = zip((0, 0), mask.shape[2:], geometry.stride, geometry.padding, geometry.dilation)
    height, width = (Axis(*each) for each in numbers)
    return conv_dgrad_coo(mask, (height, width), geometry.groups)
