"""Round 0 of a search under DeepSpeed, for networks too large for one GPU's memory:

    torchrun --nproc_per_node 8 -m sparseflow_launchers.dense RECIPE --deepspeed ds_zero3.json --out DIR

trains the whole network, keeps its rewind point, and finds the masks of round 1 on the shards. The sparse rounds go on
in the same folder: `torchrun … -m sparseflow_launchers.imp RECIPE --out DIR --resume`. Exit status as there.
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

from sparseflow import data, runs
from sparseflow.display import make_display
from sparseflow.recipes import Recipe, load_recipe
from sparseflow.runs import Run
from sparseflow.training.trainer import Listener, Stopped
from sparseflow.workers import STOPPED, StopFlag, tuned
from sparseflow_launchers.dense_round import DenseRound, check_pruning
from sparseflow_launchers.launched import Launch, check_same_input, check_shared, launched
from sparseflow_launchers.zero_config import describe, read_config, settle

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def dense(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with sparseflow.")],
    deepspeed: Annotated[Path, typer.Option(help="DeepSpeed's configuration, JSON.")],
    out: Annotated[Path | None, typer.Option(help="The run's folder, seen by all ranks; by default runs/NAME.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value laid over the recipe.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    processes: Annotated[int | None, typer.Option(help="How many processes must take part.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds after which a rank that hangs ends the launch.")] = 300.0,
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 600.0,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True, help="From the deepspeed launcher.")] = 0,
) -> None:
    """Train the dense round of a recipe under DeepSpeed, and find the masks of the first sparse one."""
    with launched(timeout, processes) as launch:
        ranks = launch.ranks
        chosen = ranks.each(lambda: load_recipe(recipe, settings or []))
        config = ranks.each(lambda: read_config(deepspeed))
        check_same_input(ranks, chosen, f"deepspeed {json.dumps(config, sort_keys=True)}")
        ranks.each(lambda: check_pruning(chosen.pruning))
        settled, cut = ranks.each(lambda: settle(config, chosen.training, ranks.world))
        _Dense(launch, chosen, out or Path("runs") / chosen.name).run(DenseRound(settled, cut, save_every), resume)


class _Dense:
    def __init__(self, launch: Launch, recipe: Recipe, folder: Path) -> None:
        self.launch, self.ranks, self.found = launch, launch.ranks, Run(folder, recipe)
        self.started = time.monotonic()

    def run(self, rounds: DenseRound, resume: bool) -> None:
        ranks, found, recipe = self.ranks, self.found, self.found.recipe
        ranks.first(lambda: _open(found, resume))
        ranks.first(lambda: _fetch(recipe))
        ranks.each(lambda: runs.check(recipe))
        self.started -= ranks.first(lambda: runs.begin(found))
        check_shared(ranks, found.folder)
        flag = StopFlag()
        self.launch.note = self._note_stop
        with ExitStack() as stack:
            listener = self._listener(stack)
            stack.enter_context(flag.installed())
            stack.enter_context(tuned(recipe.threads or _threads()))
            try:
                for seed in recipe.seeds:
                    rounds.train(found, seed, listener, flag)
            except Stopped as stopped:
                step = stopped.step
                ranks.first(lambda: self._note_stop(STOPPED, "signal", step))
                raise
        ranks.first(lambda: print(_next(found, describe(rounds.config)), flush=True))

    def _listener(self, stack: ExitStack) -> Listener:
        watch, recipe = self.launch.watch, self.found.recipe

        def phase(event: dict[str, Any]) -> None:
            watch.phase = f"seed {event['seed']}, dense round, step {event.get('step', 0)}"

        if not self.ranks.main:
            return phase
        metrics = stack.enter_context((self.found.folder / "metrics.jsonl").open("a"))
        display = stack.enter_context(make_display(recipe.seeds, 1, recipe.training.steps))

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


def _threads() -> int:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 1 if torch.cuda.is_available() else max(1, (os.cpu_count() or 1) // here)


def _next(found: Run, how: str) -> str:
    return (
        f"round 0 is done under DeepSpeed ({how}); go on with: torchrun --nproc_per_node N -m sparseflow_launchers.imp "
        f"{found.folder / 'recipe.yaml'} --out {found.folder} --resume"
    )


if __name__ == "__main__":
    app()
