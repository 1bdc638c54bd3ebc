"""What pruning a large model costs a rank."""

from __future__ import annotations

from sparseflow.bench.figure import Figure
from sparseflow.bench.pruning import prune_globally

_PRUNED = 100_000_000


def distributed() -> list[Figure]:
    """The figures of this file."""
    return prune_globally("slices", _PRUNED, faster=15, peak=3)
