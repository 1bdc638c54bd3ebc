"""Weight erasure: how much of its initial weights a network still knows after training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Erasure:
    """Of one weight: its correlation with its start, the fraction of signs that flipped, and ‖W − W₀‖ / ‖W₀‖."""

    correlation: float
    flips: float
    change: float


def erasure(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
) -> dict[str, Erasure]:
    """Name → erasure of every tensor of `end` with two or more dimensions; of kept weights alone where there are masks.

    To rewind after training means less the more is erased. `ValueError` where `start` lacks a tensor, or has it in
    another shape, and where it does not vary, so that nothing correlates with it.
    """
    found = {}
    for name, after in end.items():
        if after.dim() < 2:
            continue
        if name not in start or start[name].shape != after.shape:
            got = tuple(start[name].shape) if name in start else "none"
            raise ValueError(f"erasure: {name}: expected a start of shape {tuple(after.shape)}, got {got}")
        kept = None if masks is None else masks.get(name)
        pair = (tensor.detach().double() for tensor in (start[name], after))
        found[name] = _erasure(name, *(one.flatten() if kept is None else one[kept] for one in pair))
    return found


def _erasure(name: str, before: Tensor, after: Tensor) -> Erasure:
    a, b = before - before.mean(), after - after.mean()
    if not a.norm() or not b.norm():
        raise ValueError(
            f"erasure: {name}: expected weights that differ from each other, got {before.numel()} equal ones"
        )
    return Erasure(
        correlation=float(a @ b / (a.norm() * b.norm())),
        flips=float((before.sign() != after.sign()).double().mean()),
        change=float((after - before).norm() / before.norm()),
    )
