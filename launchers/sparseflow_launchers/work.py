"""A worker's work on the folder of a run: opened by rank 0, seen by all, its events written down, its stops noted."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from sparseflow import runs
from sparseflow.display import make_display
from sparseflow.runs import Run, Task
from sparseflow.training.trainer import Listener, Stopped
from sparseflow.workers import STOPPED, StopFlag, tuned
from sparseflow_launchers.launched import Launch, check_shared


class Work:
    """What all ranks of a launch do around the training of a run."""

    def __init__(self, launch: Launch, run: Run) -> None:
        self.launch, self.run = launch, run
        self._started = time.monotonic()

    @property
    def started(self) -> float:
        """When the run began, on the monotonic clock, had it never been stopped."""
        return self._started

    def begin(self, resume: bool, replan: bool = False) -> Task:
        """Opens the folder, and checks everything that a recipe can have wrong. `ValueError` on all ranks alike."""
        ranks, run = self.launch.ranks, self.run
        ranks.first(lambda: _open(run, resume))
        ranks.first(lambda: runs.make_local(run.recipe.data))
        task = ranks.each(lambda: runs.check(run.recipe))
        self._started -= ranks.first(lambda: runs.begin(run, replan))
        check_shared(ranks, run.folder)
        self.launch.note = self._note
        return task

    @contextmanager
    def training(self, networks: int) -> Iterator[tuple[Listener, Callable[[], bool]]]:
        """Around the training: who listens, and whether a signal asked to stop. `networks`: how many a seed trains.

        A stop is noted in the folder on its way out.
        """
        flag = StopFlag(together=1.0)
        with ExitStack() as stack:
            listener = self._listener(stack, networks)
            stack.enter_context(flag.installed())
            stack.enter_context(tuned(self.run.recipe.threads or _threads()))
            try:
                yield listener, flag
            except Stopped as stopped:
                step = stopped.step
                self.launch.ranks.first(lambda: self._note(STOPPED, "signal", step))
                raise

    def _listener(self, stack: ExitStack, networks: int) -> Listener:
        watch, recipe = self.launch.watch, self.run.recipe

        def phase(event: dict[str, Any]) -> None:
            at = f"step {event['step']}" if event["event"] == "step" else "trained"
            watch.phase = f"seed {event['seed']}, {event['kind']} {event['round']}, {at}"

        if not self.launch.ranks.main:
            return phase
        metrics = stack.enter_context((self.run.folder / "metrics.jsonl").open("a"))
        display = stack.enter_context(make_display(recipe.seeds, networks, recipe.training.steps))

        def listen(event: dict[str, Any]) -> None:
            phase(event)
            metrics.write(json.dumps(event) + "\n")
            metrics.flush()
            display.show(event)

        return listen

    def _note(self, status: int, reason: str, step: int | None) -> None:
        runs.note_stop(self.run, status, reason, step, time.monotonic() - self._started)


def _open(run: Run, resume: bool) -> None:
    runs.open_run(run.folder, run.recipe, resume)


def _threads() -> int:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 1 if torch.cuda.is_available() else max(1, (os.cpu_count() or 1) // here)
