"""The gather kernels on one masked weight: the three products, each with the tiles that are fastest here."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseflow_kernels.triton_slices import Slices, slices

HEIGHT = 16


def structures(mask: Tensor, height: int = HEIGHT) -> tuple[Slices, Slices]:
    """The slices of a mask (O, I), and those of its transpose; values stand in row-major order."""
    outputs, inputs = mask.shape
    rows, columns = mask.nonzero().unbind(1)
    places = torch.arange(rows.numel(), device=mask.device)
    turned = columns.argsort(stable=True)
    return (
        slices(rows, columns, places, (outputs, inputs), height),
        slices(columns[turned], rows[turned], places[turned], (inputs, outputs), height),
    )
