"""What pruning a large model costs a rank."""

from __future__ import annotations

from sparseflow.bench.clock import threads
from sparseflow.bench.figure import Figure
from sparseflow.bench.pruning import prune_globally

_PRUNED = 100_000_000


def distributed() -> list[Figure]:
    """The figures of this file, on one thread: a machine of many ranks has no more for each."""
    with threads(1):
        return prune_globally("slices", _PRUNED, faster=15, peak=3)
