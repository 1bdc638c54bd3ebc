"""Iterative magnitude pruning on our backends against the same search on `dense`: the time of all rounds together.

A real search takes hours, not seven times over. So both searches go on round by round in turn, each round is short, and
every step is timed: sample k takes each round to be its own time outside the steps (pruning, planning, packing, proofs,
evaluation, the first step) plus so many steps, all like its k-th. Promised is what that comes to for rounds of 500
steps, which is short for a search: a dozen alone would be outweighed by what a round costs outside of them. What the
rounds came to as they were run stands beside it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch

from sparseflow.bench import networks
from sparseflow.bench.clock import ratios, threads
from sparseflow.bench.figure import Figure
from sparseflow.bench.networks import Case
from sparseflow.data import Data, TensorSplit
from sparseflow.files import Ticket
from sparseflow.training.lottery import imp
from sparseflow.training.proof import ProofError
from sparseflow.training.trainer import Trainer

# Prunings → the most that ours may take, over dense. With the rate, 6.9 % and 1.2 % of the weights are kept.
_LIMITS = {12: 0.65, 20: 0.45}
_RATE = 0.2
_STEPS = 12
_PROMISED_STEPS = 500


@dataclass(frozen=True)
class Round:
    """Seconds of one round outside its steps, the first step among them, and of each later step."""

    outside: float
    steps: tuple[float, ...]


def search() -> list[Figure]:
    """IMP of the wide MLP, 20 rounds, 2 threads: total time over the search on `dense`, after 12 rounds and 20."""
    return searches(networks.mlp_wide(), _LIMITS, _STEPS)


def searches(case: Case, limits: Mapping[int, float], steps: int, backend: str = "auto") -> list[Figure]:
    """Both searches, side by side; `limits`: number of prunings → the most that ours may take, over dense."""
    names = {rounds: f"IMP of {case.name}, {rounds} rounds" for rounds in limits}
    try:
        with threads(case.threads):
            # Imports and first calls would otherwise count for the side that comes first.
            _both(networks.mlp("warm-up", (8, 8), 8, case.threads), 1, 2, backend)
            sides = _both(case, max(limits), steps, backend)
    except ProofError as error:
        return [Figure(names[rounds], "x", limit, False, (), str(error)) for rounds, limit in limits.items()]
    figures = []
    for rounds, limit in limits.items():
        done = {side: timed[: rounds + 1] for side, timed in sides.items()}
        figures.append(
            _figure(f"{names[rounds]} of {_PROMISED_STEPS} steps, computed: ours / dense", limit, done, _PROMISED_STEPS)
        )
        figures.append(_figure(f"  the same as run, with {steps} steps", None, done, steps))
    return figures


def totals(rounds: list[Round], steps: int) -> tuple[float, ...]:
    """Seconds of all rounds with so many steps each: sample k has every step of a round last as long as its k-th.

    The first step of a round is in its time outside.
    """
    return tuple(
        sum(one.outside + (steps - 1) * step for one, step in zip(rounds, kth))
        for kth in zip(*(one.steps for one in rounds), strict=True)
    )


def _figure(name: str, limit: float | None, sides: Mapping[str, list[Round]], steps: int) -> Figure:
    seconds = {side: totals(rounds, steps) for side, rounds in sides.items()}
    return Figure(name, "x", limit, False, ratios(seconds["ours"], seconds["dense"]), seconds=seconds)


def _both(case: Case, rounds: int, steps: int, backend: str) -> dict[str, list[Round]]:
    searches = {"dense": _Search(case, rounds, steps, "dense"), "ours": _Search(case, rounds, steps, backend)}
    timed: dict[str, list[Round]] = {side: [] for side in searches}
    # The first rounds of both are the same dense training, and round 0 is the first of rounds + 1.
    for _ in range(rounds + 1):
        for side, one in searches.items():
            timed[side].append(one.round())
    return timed


class _Search:
    def __init__(self, case: Case, rounds: int, steps: int, backend: str) -> None:
        batch = len(case.x)
        train = TensorSplit(case.x.repeat(4, 1), case.target.repeat(4))
        few = TensorSplit(case.x[:8], case.target[:8])
        task = Data("random", "classification", train, few, few, int(case.target.max()) + 1, tuple(case.x.shape[1:]))
        make = functools.partial(torch.optim.AdamW, lr=1e-4, fused=True)
        trainer = Trainer(case.build, task, optimizer=make, steps=steps, batch_size=batch, evaluate_every=steps)
        # It is asked after each step: the place to look at the clock.
        trainer.should_stop = self._tick
        self.steps = steps
        self.ticks: list[float] = []
        # Globally, so short a training would prune by the scale of the initialisation, and whole layers.
        self.tickets: Iterator[Ticket] = imp(
            trainer, rounds=rounds, rate=_RATE, allocation="layerwise", backend=backend
        )

    def round(self) -> Round:
        start = time.perf_counter()
        next(self.tickets)
        whole = time.perf_counter() - start
        # The search asks once more between rounds, before the first step of the next.
        ends = self.ticks[-self.steps :]
        return Round(whole - (ends[-1] - ends[0]), tuple(b - a for a, b in pairwise(ends)))

    def _tick(self) -> bool:
        self.ticks.append(time.perf_counter())
        return False
