"""How much a run keeps on the disk, and whether there is room for it."""

from __future__ import annotations

import shutil
from pathlib import Path

from sparseflow.doctor.finding import Finding, ok, wrong
from sparseflow.doctor.network import Network
from sparseflow.masks import schedules
from sparseflow.recipes import PruningSpec, Recipe

# Bytes of a weight; an optimizer like Adam keeps two numbers more for each.
_WEIGHT = 4
_MOMENTS = 2
# Checkpoints of a training: two are kept while a third is written. Weights of a round: of the newest two.
_CHECKPOINTS = 3
_ROUNDS = 2
# ZeRO's: weights, masters and moments, at the rewind point and at the end, the one before, and the one being written.
_ZERO_CHECKPOINTS = 4
_MARGIN = 1.2


def needed_bytes(recipe: Recipe, network: Network, zero: bool = False) -> int:
    """At most what a run keeps at any time: an estimate from the numbers of parameters, all seeds, a fifth on top.

    For each seed: the rewind point; for each of the newest two rounds the weights at the end, at early stop and the
    rewind point again; checkpoints of a training (weights, the best ones, optimizer); the tickets of all rounds.
    """
    dense = _WEIGHT * network.parameters
    checkpoint = (2 + _MOMENTS) * dense
    seed = dense + _ROUNDS * 3 * dense + _CHECKPOINTS * checkpoint + _tickets(recipe.pruning, network)
    if zero:
        seed += _ZERO_CHECKPOINTS * checkpoint
    return round(_MARGIN * seed * len(recipe.seeds))


def check_space(place: Path, needed: int) -> Finding:
    """Whether the file system of an existing folder has so many bytes free."""
    free = shutil.disk_usage(place).free
    text = f"{size(free)} are free in {place}, and the run keeps up to about {size(needed)}"
    return ok("space", text) if free >= needed else wrong("space", f"{text}; free some, or choose another --out")


def size(count: int) -> str:
    """A number of bytes for people: 3.4 GB."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{count} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _tickets(spec: PruningSpec, network: Network) -> int:
    unpruned = network.parameters - network.prunable
    kept = sum(_density(spec, number) for number in range(spec.rounds + 1)) * network.prunable
    # A bit for each prunable weight, beside the values.
    return round(_WEIGHT * kept + (spec.rounds + 1) * (_WEIGHT * unpruned + network.prunable / 8))


def _density(spec: PruningSpec, number: int) -> float:
    """At most the density after so many prunings."""
    if spec.density is not None and spec.rounds:
        return schedules.get(spec.schedule)(spec.density)(number / spec.rounds)
    slowest: float = min([rate for rate in (spec.rate, *(spec.rates or {}).values()) if rate is not None], default=0.0)
    # Layers that `rates` does not name are pruned by `rate`, or not at all.
    return 1.0 if spec.rate is None else (1 - slowest) ** number
