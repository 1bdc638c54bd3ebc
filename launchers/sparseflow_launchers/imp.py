"""The search for a ticket as one process of a launch: `torchrun --nproc_per_node 8 -m sparseflow_launchers.imp RECIPE`.

Rank 0 writes the run's folder, which all ranks must see, and speaks. Exit status of each: 0 done, 1 error, 2 wrong
input, 75 stopped by a signal with a checkpoint written.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from sparseflow import data, replay, results, runs
from sparseflow.display import make_display
from sparseflow.recipes import Recipe, load_recipe
from sparseflow.report import summary
from sparseflow.runs import Run
from sparseflow.training.engines import EngineName
from sparseflow.training.trainer import Listener, Stopped
from sparseflow.workers import STOPPED, StopFlag, tuned
from sparseflow_launchers.launched import Launch, check_same_input, check_shared, launched

_ENGINES: dict[str, EngineName] = {"ddp": "ddp", "fsdp2": "fsdp2"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def imp(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with sparseflow.")],
    out: Annotated[Path | None, typer.Option(help="The run's folder, seen by all ranks; by default runs/NAME.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value laid over the recipe.")] = None,
    plan: Annotated[Path | None, typer.Option(help="Replay the plans of a result.json.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    replan: Annotated[bool, typer.Option("--replan", help="Plan unfinished rounds anew; not bit-identical.")] = False,
    processes: Annotated[int | None, typer.Option(help="How many processes must take part.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds after which a rank that hangs ends the launch.")] = 300.0,
    engine: Annotated[str, typer.Option(help="ddp or fsdp2.")] = "ddp",
) -> None:
    """Find a lottery ticket on the processes of this launch."""
    with launched(timeout, processes) as launch:
        chosen = launch.ranks.each(lambda: load_recipe(recipe, settings or []))
        check_same_input(launch.ranks, chosen, engine)
        search = _Search(launch, chosen, out or Path("runs") / chosen.name, _engine(engine), plan)
        search.run(resume, replan)


class _Search:
    def __init__(self, launch: Launch, recipe: Recipe, folder: Path, engine: EngineName, plan: Path | None) -> None:
        self.launch, self.ranks, self.plan = launch, launch.ranks, plan
        self.engine: EngineName = engine
        self.found = Run(folder, recipe)
        self.started = time.monotonic()

    def run(self, resume: bool, replan: bool) -> None:
        ranks, found, recipe = self.ranks, self.found, self.found.recipe
        ranks.first(lambda: _open(found, resume))
        replayed = ranks.each(lambda: None if self.plan is None else replay.read_plans(self.plan, recipe))
        ranks.first(lambda: _fetch(recipe))
        task = ranks.each(lambda: runs.check(recipe))
        self.started -= ranks.first(lambda: runs.begin(found, replan))
        check_shared(ranks, found.folder)
        flag = StopFlag(together=1.0)
        self.launch.note = self._note_stop
        with ExitStack() as stack:
            listener = self._listener(stack)
            stack.enter_context(flag.installed())
            stack.enter_context(tuned(recipe.threads or _threads()))
            try:
                for seed in recipe.seeds:
                    self.launch.watch.phase = f"seed {seed}"
                    runs.run_seed(found, seed, listener, flag, replayed, replan, self.engine)
            except Stopped as stopped:
                step = stopped.step
                ranks.first(lambda: self._note_stop(STOPPED, "signal", step))
                raise
        self.launch.watch.phase = "report"
        ranks.first(lambda: print(summary(results.finish(found, task, self.started)), flush=True))

    def _listener(self, stack: ExitStack) -> Listener:
        watch, recipe = self.launch.watch, self.found.recipe

        def phase(event: dict[str, Any]) -> None:
            at = f"step {event['step']}" if event["event"] == "step" else "trained"
            watch.phase = f"seed {event['seed']}, {event['kind']} {event['round']}, {at}"

        if not self.ranks.main:
            return phase
        metrics = stack.enter_context((self.found.folder / "metrics.jsonl").open("a"))
        networks = runs.trainings(recipe)
        display = stack.enter_context(make_display(recipe.seeds, networks, recipe.training.steps))

        def listen(event: dict[str, Any]) -> None:
            phase(event)
            metrics.write(json.dumps(event) + "\n")
            metrics.flush()
            display.show(event)

        return listen

    def _note_stop(self, status: int, reason: str, step: int | None) -> None:
        runs.note_stop(self.found, status, reason, step, time.monotonic() - self.started)


def _open(found: Run, resume: bool) -> None:
    runs.open_run(found.folder, found.recipe, resume)


def _fetch(recipe: Recipe) -> None:
    if "path" not in recipe.data.options and data.available().get(recipe.data.name, "").startswith("not here"):
        data.fetch(recipe.data.name)


def _engine(name: str) -> EngineName:
    if name in _ENGINES:
        return _ENGINES[name]
    raise ValueError(
        f"--engine: expected ddp or fsdp2, got {name!r}; dense rounds under DeepSpeed are "
        "`python -m sparseflow_launchers.dense`"
    )


def _threads() -> int:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 1 if torch.cuda.is_available() else max(1, (os.cpu_count() or 1) // here)


if __name__ == "__main__":
    app()
