"""A mask as bits, the form in which state dicts hold it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def pack_bits(mask: Tensor) -> Tensor:
    """uint8 of a bool tensor: row-major, eight places a byte, lowest bit first, the last byte padded with 0."""
    bits = np.packbits(mask.detach().cpu().numpy().reshape(-1), bitorder="little")
    return torch.from_numpy(bits).to(mask.device)


def unpack_bits(bits: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """The inverse of `pack_bits`. `ValueError` with `name` where the bytes do not fit the shape."""
    numel = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.numel() != -(-numel // 8):
        raise ValueError(
            f"{name}: expected {-(-numel // 8)} bytes of torch.uint8 for shape {shape}, "
            f"got {bits.numel()} of {bits.dtype}"
        )
    flat = np.unpackbits(bits.cpu().numpy().reshape(-1), bitorder="little")
    if flat[numel:].any():
        raise ValueError(f"{name}: expected zero bits after the last weight, got ones; the mask is damaged")
    return torch.from_numpy(flat[:numel].astype(bool)).view(shape).to(bits.device)
