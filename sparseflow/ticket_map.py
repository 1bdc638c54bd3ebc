"""Many tickets: the last tickets of several runs side by side, such as of several criteria from one initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseflow.files import Ticket
from sparseflow.masks.overlap import Overlap, overlap_of, sign_agreement
from sparseflow.recipes import make_trainer
from sparseflow.runs import Run, load_run, metrics_of
from sparseflow.training.connectivity import Barrier, Stability, barrier, stability, suggested_step
from sparseflow.training.instruments import weight_erasure

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Entry:
    """One run's ticket. `known`: correlation of its trained weights with their start, mean over layers."""

    run: str
    criterion: str
    density: float
    test_accuracy: float
    known: float | None


@dataclass(frozen=True)
class Pair:
    """Two tickets, by their numbers. `signs`: of the weights that both keep, the fraction trained to the same sign."""

    first: int
    second: int
    overlap: Overlap
    signs: float


@dataclass(frozen=True)
class TicketMap:
    """The tickets of one seed. `same_start`: whether all began with the same weights. `barrier`: of the first two."""

    seed: int
    same_start: bool
    entries: list[Entry]
    pairs: list[Pair]
    shared: Overlap
    barrier: Barrier | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "barrier": None if self.barrier is None else self.barrier.to_json()}

    def __str__(self) -> str:
        start = "one initialisation" if self.same_start else "different initialisations"
        lines = [f"last tickets of seed {self.seed}, from {start}"]
        lines += [
            f"  {number}  {one.run:<20}  {one.criterion:<14}  {one.density:>7.2%}  {one.test_accuracy:>7.2%}  "
            f"init known {'–' if one.known is None else f'{one.known:.2f}'}"
            for number, one in enumerate(self.entries, 1)
        ]
        lines.append("pair   shared of a ticket   times chance   in layers   same sign")
        lines += [_pair_line(one) for one in self.pairs]
        if len(self.entries) > 2:
            lines.append(
                f"all {len(self.entries)} share {self.shared.of_kept:.2%} of a ticket, {self.shared.over_chance:.2f} "
                "times as much as chance in their layers"
            )
        if self.barrier is not None:
            lines += [
                f"between the first two, {name}: error rises by at most {100 * line.instability:.2f} points "
                f"({100 * line.error_barrier:+.2f} above the chord)"
                for name, line in (("train", self.barrier.train), ("test", self.barrier.test))
            ]
        return "\n".join(lines)


def map_tickets(folders: Sequence[Path], with_barrier: bool = False) -> TicketMap:
    """The last tickets of two or more finished runs, of the first seed that all have.

    `with_barrier` also measures what lies between the first two, which takes their data. `ValueError` where a run is
    not finished, they have no seed in common, or their networks have other weights.
    """
    runs = [load_run(folder) for folder in folders]
    common = [seed for seed in runs[0].recipe.seeds if all(seed in run.recipe.seeds for run in runs)]
    if not common:
        raise ValueError(f"expected runs with a seed in common, got {', '.join(str(run.recipe.seeds) for run in runs)}")
    seed = common[0]
    tickets, ends = zip(*(_last(run, seed) for run in runs))
    masks = [ticket.masks for ticket in tickets]
    pairs = [
        Pair(i + 1, j + 1, overlap_of([masks[i], masks[j]]), sign_agreement(ends[i], ends[j], [masks[i], masks[j]]))
        for i, j in combinations(range(len(runs)), 2)
    ]
    starts = [run.records(seed).rewind_point(_CPU) or {} for run in runs]
    return TicketMap(
        seed=seed,
        same_start=all(_equal(starts[0], other) for other in starts[1:]),
        entries=[_entry(run, seed, *each) for run, *each in zip(runs, tickets, ends)],
        pairs=pairs,
        shared=overlap_of(masks),
        barrier=barrier(make_trainer(runs[0].recipe, seed), ends[0], ends[1]) if with_barrier else None,
    )


@dataclass(frozen=True)
class StabilityTable:
    """Rewind steps of a recipe's dense network, and the one that their stability suggests."""

    seed: int
    found: list[Stability]

    @property
    def suggestion(self) -> int | None:
        """See `suggested_step`."""
        return suggested_step(self.found)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = [{"step": one.step, "stable": one.stable, **one.barrier.to_json()} for one in self.found]
        return {"seed": self.seed, "steps": rows, "rewind_to": self.suggestion}

    def __str__(self) -> str:
        lines = ["  step   instability, train     test   (points)"]
        lines += [
            f"{one.step:>6}   {100 * one.barrier.train.instability:>18.2f}   {100 * one.barrier.test.instability:>6.2f}"
            f"   {'stable' if one.stable else 'unstable'}"
            for one in self.found
        ]
        said = "no step tried is late enough" if self.suggestion is None else f"rewind_to: {self.suggestion}"
        return "\n".join([*lines, said])


def stability_of(folder: Path, steps: Sequence[int]) -> StabilityTable:
    """Trains a run's dense network anew and, from each step, two copies by other data orders: see `stability`."""
    recipe = load_run(folder).recipe
    seed = recipe.seeds[0]
    return StabilityTable(seed, stability(make_trainer(recipe, seed), steps))


def _last(run: Run, seed: int) -> tuple[Ticket, dict[str, Tensor]]:
    """The last ticket, and its network as trained, at early stop."""
    number = run.recipe.pruning.rounds
    if run.records(seed).metrics(number) is None:
        raise ValueError(f"{run.folder}: expected a finished run; finish it with --resume")
    return run.records(seed).ticket(number), dict(run.records(seed).early(number).state)


def _entry(run: Run, seed: int, ticket: Ticket, end: dict[str, Tensor]) -> Entry:
    metrics = metrics_of(run.records(seed).metrics(ticket.round))
    layers = weight_erasure(ticket.rewind, end, ticket.masks).values()
    algorithm, pruning = run.recipe.algorithm.name, run.recipe.pruning
    return Entry(
        run=run.folder.name,
        criterion=pruning.criterion if algorithm in ("imp", "prune-at-init") else algorithm,
        density=metrics["density"],
        test_accuracy=metrics["test_accuracy"],
        known=sum(one.correlation for one in layers) / len(layers) if layers else None,
    )


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(one, second[name]) for name, one in first.items())


def _pair_line(one: Pair) -> str:
    chance = one.overlap.shared / one.overlap.chance
    return (
        f"{one.first} {one.second}    {one.overlap.of_kept:>18.2%}   {chance:>12.2f}   "
        f"{one.overlap.over_chance:>9.2f}   {one.signs:>9.2%}"
    )
