"""The structure of one product of a layer, and the kernels that use it: slices for gathers, panels for tensor cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from triton.runtime import driver

from sparseflow.hardware.backends.triton_choice import WHICH, Layout, Product, Which
from sparseflow_kernels import triton_panel, triton_panel_gradient, triton_sddmm, triton_spmm
from sparseflow_kernels.triton_axis import Axis
from sparseflow_kernels.triton_coo import Coo, conv_dgrad_coo, forward_coo, linear_dgrad_coo
from sparseflow_kernels.triton_lines import Lines
from sparseflow_kernels.triton_pack import refresh
from sparseflow_kernels.triton_panel import PanelConfig, panel_spmm
from sparseflow_kernels.triton_panel_gradient import PanelGradientConfig, panel_sddmm
from sparseflow_kernels.triton_panel_pack import fill_panels
from sparseflow_kernels.triton_panels import Panels, panels
from sparseflow_kernels.triton_sddmm import SddmmConfig, sddmm
from sparseflow_kernels.triton_slices import Slices, slices
from sparseflow_kernels.triton_spmm import SpmmConfig, spmm
from sparseflow_kernels.triton_tune import parse_config

Part = Slices | Panels
Config = SpmmConfig | SddmmConfig | PanelConfig | PanelGradientConfig

_C = TypeVar("_C", SpmmConfig, SddmmConfig, PanelConfig, PanelGradientConfig)


def parts_of(mask: Tensor, layout: Layout) -> dict[Which, Part]:
    """The structures that the products of a layout need, by product; one is shared where two can.

    `ValueError` for a configuration that is none of the kernel's.
    """
    found: dict[Which, Part] = {}
    for which in WHICH:
        product: Product = getattr(layout, which)
        if product.kind == "dense":
            continue
        _check_config(product, which)
        # The weight gradient reads the same as the forward; the input gradient has rows of its own.
        if which == "wgrad" and (product.kind, product.height) == (layout.forward.kind, layout.forward.height):
            found[which] = found["forward"]
        else:
            coo = _dgrad_coo(mask, layout) if which == "dgrad" else forward_coo(mask, layout.geometry.groups)
            cut = slices if product.kind == "gather" else panels
            found[which] = cut(coo.rows, coo.columns, coo.places, coo.shape, product.height)
    return found


def multiply(
    part: Part, product: Product, values: Tensor, x: Tensor, lines: Lines, bias: Tensor | None, relu: bool
) -> Tensor:
    """(rows, tokens) in the dtype of x: the forward, or the input gradient."""
    bias = None if bias is None else bias.contiguous()
    # Triton launches on the current GPU, which need not be that of the tensors.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        if isinstance(part, Slices):
            packed = refresh(values, [part.source], x.dtype)[0]
            return spmm(part, packed, x, lines, x.dtype, bias, relu, _config(SpmmConfig, product.config))
        packed = fill_panels(part, values, x.dtype)
        return panel_spmm(part, packed, x, lines, x.dtype, bias, relu, _config(PanelConfig, product.config))


def weight_gradient(
    part: Part, product: Product, dy_OT: Tensor, x: Tensor, lines: Lines, nnz: int, dtype: torch.dtype
) -> Tensor:
    """dvalues (nnz,) of that dtype, in canonical order."""
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        if isinstance(part, Slices):
            return sddmm(part, dy_OT, x, lines, nnz, dtype, _config(SddmmConfig, product.config))
        return panel_sddmm(part, dy_OT, x, lines, dtype, _config(PanelGradientConfig, product.config))


def configs_of(
    product: Product, which: Which, dtype: torch.dtype, device: torch.device
) -> tuple[Config, Sequence[Config]]:
    """The configuration that a kernel has on a GPU where nothing was measured, and those that may be faster there."""
    if product.kind == "gather":
        module = triton_sddmm if which == "wgrad" else triton_spmm
        return module.DEFAULT[dtype.itemsize], module.CONFIGS[dtype.itemsize]
    shared = cast(Any, driver.active).utils.get_device_properties(device.index or 0)["max_shared_mem"]
    if which == "wgrad":
        default = triton_panel_gradient.default_config(product.height, device)
        return default, triton_panel_gradient.configs(product.height, shared)
    # From sm_90 on tensor cores read both factors from shared memory.
    from_shared = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
    default_panel = triton_panel.default_config(product.height, device)
    return default_panel, triton_panel.configs(product.height, shared, from_shared)


def _check_config(product: Product, which: Which) -> None:
    if product.kind == "gather":
        _config(SddmmConfig, product.config) if which == "wgrad" else _config(SpmmConfig, product.config)
    else:
        _config(PanelGradientConfig, product.config) if which == "wgrad" else _config(PanelConfig, product.config)


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
