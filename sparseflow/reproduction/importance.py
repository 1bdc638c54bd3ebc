"""Row 19: importance within layers: what it does not see, and what tickets it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sparseflow.masks.importance import Importance
from sparseflow.masks.overlap import overlap_of
from sparseflow.masks.select import prune_tensors
from sparseflow.reproduction.outcome import Outcome
from sparseflow.reproduction.searches import LENET
from sparseflow.reproduction.short import short_search
from sparseflow.reproduction.tickets import RATE

_BY: tuple[Importance | None, ...] = (None, "l1", "l2", "minmax", "softmax")
_BLIND = ("l1", "l2", "minmax")


def scale(seeds: Sequence[int]) -> Outcome:
    """Row 19a: which masks change when a layer is scaled."""
    changed: set[str] = set()
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        # In float64, so that the rounding of the factor moves no weight across the threshold.
        weights = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in LENET.items()}
        scaled = {**weights, "fc2.weight": 7 * weights["fc2.weight"]}
        for by in _BY:
            pair = [prune_tensors(one, density=0.1, importance=by) for one in (weights, scaled)]
            if pair[0].digest != pair[1].digest:
                changed.add(by or "magnitude")
    holds = changed == {"magnitude", "softmax"}
    return Outcome(holds, f"changed: {', '.join(sorted(changed)) or 'none'}; not: {', '.join(_BLIND)}")


def side_by_side(seed: int) -> dict[str, Any]:
    """Tickets by magnitude, L1 and L2 from one initialisation: accuracies, and what they share."""
    found = {by or "magnitude": short_search(seed, rate=RATE, importance=by, floor=1) for by in _BY[:3]}
    shared = overlap_of([one.masks for one in found.values()])
    accuracies = {name: one.accuracy for name, one in found.items()}
    return {"accuracies": accuracies, "of_kept": shared.of_kept, "over_chance": shared.over_chance}


def tickets(found: Sequence[Mapping[str, Any]]) -> Outcome:
    """Row 19b: tickets by magnitude, L1 and L2 overlap more than by chance, and are about as accurate."""
    shown, holds = [], True
    for one in found:
        accuracies = one["accuracies"].values()
        holds = holds and max(accuracies) - min(accuracies) <= 1.0 and one["over_chance"] > 1
        each = ", ".join(f"{name} {accuracy:.2f}" for name, accuracy in one["accuracies"].items())
        shown.append(f"{each} %; all three share {one['of_kept']:.1%} of a ticket, {one['over_chance']:.1f} × chance")
    return Outcome(holds, "; ".join(shown))
