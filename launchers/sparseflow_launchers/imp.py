"""The search for a ticket as one process of a launch: `torchrun --nproc_per_node 8 -m sparseflow_launchers.imp RECIPE`.

Rank 0 writes the run's folder, which all ranks must see, and speaks. Exit status of each: 0 done, 1 error, 2 wrong
input, 75 stopped by a signal with a checkpoint written.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sparseflow import replay, results, runs
from sparseflow.recipes import load_recipe
from sparseflow.report import summary
from sparseflow.runs import Run
from sparseflow.training.engines import EngineName
from sparseflow_launchers.launched import check_same_input, launched
from sparseflow_launchers.work import Work

_DEEPSPEED = "dense rounds under DeepSpeed are `python -m sparseflow_launchers.dense`"
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
        ranks = launch.ranks
        chosen = ranks.each(lambda: load_recipe(recipe, settings or []))
        check_same_input(ranks, chosen, engine)
        sparse = _engine(engine)
        replayed = ranks.each(lambda: None if plan is None else replay.read_plans(plan, chosen))
        found = Run(out or Path("runs") / chosen.name, chosen)
        work = Work(launch, found)
        task = work.begin(resume, replan)
        with work.training(runs.trainings(chosen)) as (listener, flag):
            for seed in chosen.seeds:
                launch.watch.phase = f"seed {seed}"
                runs.run_seed(found, seed, listener, flag, replayed, replan, sparse)
        launch.watch.phase = "report"
        ranks.first(lambda: print(summary(results.finish(found, task, work.started)), flush=True))


def _engine(name: str) -> EngineName:
    """The engine asked for. `ValueError` for an unknown one, and where accelerate's config is for another."""
    if name not in _ENGINES:
        raise ValueError(f"--engine: expected {' or '.join(_ENGINES)}, got {name!r}; {_DEEPSPEED}")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ValueError(f"accelerate's config is for DeepSpeed, which trains no sparse rounds: {_DEEPSPEED}")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ValueError(
            "accelerate's config shards the model by itself, which knows no sparse layers: take "
            "launchers/configs/fsdp2.yaml, whose distributed_type is MULTI_GPU, and --engine fsdp2"
        )
    return _ENGINES[name]


if __name__ == "__main__":
    app()
