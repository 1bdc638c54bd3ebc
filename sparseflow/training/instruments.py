"""What a finished search says of its tickets: what training erased, and what the seeds' masks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sparseflow.files import Ticket
from sparseflow.masks.overlap import Overlap, overlap_of
from sparseflow.training.erasure import Erasure, erasure


@dataclass(frozen=True)
class Instruments:
    """Of the tickets of one round, a seed each. `erased`: by layer, mean over seeds; `shared`: None for one seed.

    Seeds draw their weights apart: what their masks share beyond chance within layers comes from the data.
    """

    erased: dict[str, Erasure]
    shared: Overlap | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def instruments(tickets: Sequence[Ticket], trained: Sequence[Mapping[str, Tensor]]) -> Instruments:
    """`trained`: each ticket's network as dense state after training. Layers where nothing varies are left out."""
    by_seed = [weight_erasure(ticket.rewind, state, ticket.masks) for ticket, state in zip(tickets, trained)]
    names = [name for name in by_seed[0] if all(name in one for one in by_seed)]
    erased = {name: _mean([one[name] for one in by_seed]) for name in names}
    return Instruments(erased, overlap_of([ticket.masks for ticket in tickets]) if len(tickets) > 1 else None)


def weight_erasure(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, Erasure]:
    """Erasure of the kept weights of each masked layer that keeps some which differ from each other."""
    masked = {name: mask.cpu() for name, mask in masks.items()}
    pairs = {name: (start[name].cpu(), end[name].cpu()) for name in masked}
    varied = {name: pair for name, pair in pairs.items() if all(_varies(tensor, masked[name]) for tensor in pair)}
    return erasure(
        {name: before for name, (before, _) in varied.items()},
        {name: after for name, (_, after) in varied.items()},
        masked,
    )


def _varies(tensor: Tensor, mask: Tensor) -> bool:
    kept = tensor[mask]
    return kept.numel() > 1 and bool(torch.any(kept != kept[0]))


def _mean(each: Sequence[Erasure]) -> Erasure:
    count = len(each)
    return Erasure(
        correlation=sum(one.correlation for one in each) / count,
        flips=sum(one.flips for one in each) / count,
        change=sum(one.change for one in each) / count,
    )
