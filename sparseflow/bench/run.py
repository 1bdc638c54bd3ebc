"""All groups of figures, one after another, as text and as plain data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from sparseflow.bench.algorithms import algorithms
from sparseflow.bench.criteria import criteria
from sparseflow.bench.distributed import distributed
from sparseflow.bench.figure import Figure, Verdict
from sparseflow.bench.foundation import foundation
from sparseflow.bench.launches import launches
from sparseflow.bench.machine import describe_machine, load_average
from sparseflow.bench.memory import memory
from sparseflow.bench.search import search
from sparseflow.bench.startup import startup
from sparseflow.bench.streaming import streaming
from sparseflow.bench.versus_dense import convs, lenet, mlps, whole_models
from sparseflow.bench.versus_peers import peers

_BACKEND = "cpu"
_ORDER: tuple[Verdict, ...] = ("met", "missed", "wrong result", "not measured", "no promise")

# Name → what it measures, and how.
GROUPS: dict[str, tuple[str, Callable[[], list[Figure]]]] = {
    "foundation": ("What every backend stands on", foundation),
    "startup": ("Start", lambda: [startup(_BACKEND)]),
    "memory": ("Memory", lambda: memory(_BACKEND)),
    "lenet": ("LeNet-300-100, whole step", lambda: lenet(_BACKEND)),
    "mlp": ("MLPs, whole step", lambda: mlps(_BACKEND)),
    "conv": ("Convolutions, whole step of one layer, all layout copies counted", lambda: convs(_BACKEND)),
    "models": ("Whole models on what the plan chooses", whole_models),
    "peers": ("The sparse layers of others, whole step", lambda: peers(_BACKEND)),
    "launches": ("Several processes, and their checkpoints", launches),
    "imp": ("The search for a ticket, pruning and planning counted", search),
    "stream": ("Models whose weights are in a store", streaming),
    "algorithms": ("Masks that change in training", lambda: algorithms(_BACKEND)),
    "criteria": ("Criteria", criteria),
    "distributed": ("Masks of a large model from its slices", distributed),
}


def run_bench(
    only: Sequence[str] = (),
    show: Callable[[str], None] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The figures of the groups named, or of all, as plain data with every sample, and the machine.

    `show` gets the text of each part as soon as it is there; `text` in the answer is all of it. `save` gets the
    answer. `ValueError` for a group that does not exist. All groups take about twenty minutes on two cores.
    """
    unknown = [name for name in only if name not in GROUPS]
    if unknown:
        raise ValueError(f"no group {', '.join(map(repr, unknown))} in the bench; choose from: {', '.join(GROUPS)}")
    lines: list[str] = []

    def tell(text: str) -> None:
        lines.append(text)
        if show is not None:
            show(text)

    machine = {**describe_machine(), "load_before": load_average()}
    tell(_machine_text(machine))
    figures: list[dict[str, Any]] = []
    for group, (title, measure) in GROUPS.items():
        if not only or group in only:
            with _no_timings_kept():
                found = measure()
            tell("\n".join([f"\n{title} ({group})", *(f"  {figure}" for figure in found)]))
            figures += [{"group": group, **figure.to_json()} for figure in found]
    machine["load_after"] = load_average()
    tell(_summary(figures, machine))
    data = {"machine": machine, "figures": figures, "text": "\n".join(lines)}
    if save is not None:
        save(data)
    return data


@contextmanager
def _no_timings_kept() -> Iterator[None]:
    """Inside, plans begin without the timings of earlier ones, which would make planning look free."""
    key = "SPARSEFLOW_CACHE_DIR"
    before = os.environ.get(key)
    try:
        with TemporaryDirectory() as folder:
            os.environ[key] = folder
            yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def _machine_text(machine: dict[str, Any]) -> str:
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    facts = [
        machine["model"],
        machine["cpu"],
        f"{machine['cores']} cores",
        caches,
        f"torch {machine['torch']}",
        f"Python {machine['python']}",
    ]
    explained = "median [lower quartile, upper quartile] of at least 7 repeats in turn; a floor is missed when even"
    return "; ".join(fact for fact in facts if fact) + f"\n{explained} the better quartile misses it"


def _summary(figures: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    counts = Counter(figure["verdict"] for figure in figures)
    told = ", ".join(f"{counts[word]} {word}" for word in _ORDER if counts[word])
    return f"\n{told}; load average {machine['load_before']} before, {machine['load_after']} after"
