"""Canonical values → the densely packed weights of panels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseflow_kernels.triton_panels import Panels

_BLOCK = 1024


@triton.jit
def panel_fill_kernel(values, source, target, packed, nnz, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < nnz
    place = tl.load(source + i, mask=inside, other=0)
    value = tl.load(values + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(packed + tl.load(target + i, mask=inside, other=0), value.to(packed.dtype.element_ty), mask=inside)


def fill_panels(panels: Panels, values: Tensor, dtype: torch.dtype) -> Tensor:
    """The packed weights (S * R,) in a 16-bit dtype, of canonical values (Z,) of any floating dtype."""
    packed = torch.zeros(panels.slots * panels.height, dtype=dtype, device=values.device)
    if panels.nnz:
        grid = (triton.cdiv(panels.nnz, _BLOCK),)
        panel_fill_kernel[grid](values, panels.source, panels.target, packed, panels.nnz, BLOCK=_BLOCK)
    return packed
