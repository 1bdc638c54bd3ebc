"""Packed copies of canonical values, refreshed after each step: one launch, whatever the dtypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseflow_kernels.triton_pack_jit import refresh_kernel

# Slots of one program.
BLOCK = 1024


def refresh(values_Z: Tensor, sources: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """For each source, int32 (slots,), the values at its places, 0 where it says -1; of that dtype.

    Two sources, those of the forward and the input gradient, take one launch.
    """
    if values_Z.dim() != 1 or not values_Z.is_contiguous():
        raise ValueError(f"expected contiguous values of one dimension, got shape {tuple(values_Z.shape)}")
    packed = [values_Z.new_empty(source.shape, dtype=dtype) for source in sources]
    for first in range(0, len(packed), 2):
        _fill(values_Z, sources[first : first + 2], packed[first : first + 2])
    return packed


def _fill(values: Tensor, sources: Sequence[Tensor], packed: Sequence[Tensor]) -> None:
    counts = [source.numel() for source in sources]
    blocks = sum(-(-count // BLOCK) for count in counts)
    if blocks == 0:
        return
    other = counts[1] if len(counts) == 2 else 0
    refresh_kernel[(blocks,)](
        values, sources[0], packed[0], sources[-1], packed[-1], counts[0], other, BLOCK=BLOCK, num_warps=4
    )
