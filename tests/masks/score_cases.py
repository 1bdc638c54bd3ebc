"""Scores that are hard to choose from, in several layers, and the definition of the right choice."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparseflow.masks import Scores

SIZES = [(33, 7), (1,), (63, 5), (0, 4), (1000,)]
COUNT = sum(torch.Size(size).numel() for size in SIZES)


def split(flat: Tensor) -> dict[str, Tensor]:
    """The layers of which `flat` is the concatenation."""
    parts = torch.split(flat, [torch.Size(size).numel() for size in SIZES])
    return {f"layer{i}": part.reshape(size) for i, (part, size) in enumerate(zip(parts, SIZES, strict=True))}


def by_sort(scores: Scores, alive: Tensor, drop: int) -> Tensor:
    """Returns the flat mask after a stable sort of all scores, the definition of a threshold's choice."""
    flat = torch.cat([score.double().reshape(-1) for score in scores.tensors.values()])
    flat = flat.abs() if scores.absolute else flat
    order = torch.sort(flat, stable=True).indices
    order = order[alive[order]]
    mask = alive.clone()
    mask[order[:drop]] = False
    return mask


def ties(generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    values = torch.randn(COUNT, generator=generator, dtype=torch.float64)
    return (values * 50).round().to(dtype) / 50


FILLS: dict[str, Callable[[torch.Generator, torch.dtype], Tensor]] = {
    "normal": lambda g, dtype: torch.randn(COUNT, generator=g, dtype=torch.float64).to(dtype),
    "ties": ties,
    # Many scores that differ in their last digit only.
    "close": lambda g, dtype: 1 + torch.randint(60, (COUNT,), generator=g).to(dtype) * torch.finfo(dtype).eps,
    "equal": lambda g, dtype: torch.full((COUNT,), -0.5, dtype=dtype),
    "zeros of both signs": lambda g, dtype: (
        torch.zeros(COUNT, dtype=dtype) * torch.where(torch.rand(COUNT, generator=g) < 0.5, 1.0, -1.0).to(dtype)
    ),
    "denormals": lambda g, dtype: (
        torch.randint(-9, 9, (COUNT,), generator=g).to(torch.float64).to(dtype) * torch.finfo(dtype).smallest_normal / 8
    ),
    "extremes": lambda g, dtype: (
        torch.tensor([1.0, -1.0, 0.0], dtype=dtype)[torch.randint(3, (COUNT,), generator=g)] * torch.finfo(dtype).max
    ),
}
