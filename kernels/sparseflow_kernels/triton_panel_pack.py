"""Packed weights of panels, refreshed after each step."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseflow_kernels.triton_panel_jit import panel_fill_kernel
from sparseflow_kernels.triton_panels import Panels

_BLOCK = 1024


def fill_panels(panels: Panels, values_Z: Tensor, dtype: torch.dtype) -> Tensor:
    """(S R,), of that dtype: the values, of any floating dtype, at their places in the panels; 0 elsewhere."""
    if values_Z.shape != (panels.nnz,) or not values_Z.is_contiguous():
        raise ValueError(f"expected {panels.nnz} contiguous values, got shape {tuple(values_Z.shape)}")
    packed = values_Z.new_zeros(panels.slots * panels.height, dtype=dtype)
    if panels.nnz:
        blocks = -(-panels.nnz // _BLOCK)
        panel_fill_kernel[(blocks,)](
            values_Z, panels.source, panels.target, packed, panels.nnz, BLOCK=_BLOCK, num_warps=4
        )
    return packed
