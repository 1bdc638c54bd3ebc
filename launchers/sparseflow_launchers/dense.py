"""Round 0 of a search under DeepSpeed, for networks too large for one GPU's memory:

    torchrun --nproc_per_node 8 -m sparseflow_launchers.dense RECIPE --deepspeed ds_zero3.json --out DIR

trains the whole network, keeps its rewind point, and finds the masks of round 1 on the shards. The sparse rounds go on
in the same folder: `torchrun … -m sparseflow_launchers.imp RECIPE --out DIR --resume`. Exit status as there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sparseflow.recipes import load_recipe
from sparseflow.runs import Run
from sparseflow.zero_config import describe, read_config, settle
from sparseflow_launchers.dense_round import DenseRound, check_pruning
from sparseflow_launchers.launched import check_same_input, launched
from sparseflow_launchers.work import Work

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
        found = Run(out or Path("runs") / chosen.name, chosen)
        work = Work(launch, found)
        work.begin(resume)
        rounds = DenseRound(settled, cut, save_every)
        with work.training(networks=1) as (listener, flag):
            for seed in chosen.seeds:
                launch.watch.phase = f"seed {seed}"
                rounds.train(found, seed, listener, flag)
        ranks.first(lambda: print(_next(found, describe(settled)), flush=True))


def _next(found: Run, how: str) -> str:
    return (
        f"round 0 is done under DeepSpeed ({how}); go on with: torchrun --nproc_per_node N -m sparseflow_launchers.imp "
        f"{found.folder / 'recipe.yaml'} --out {found.folder} --resume"
    )


if __name__ == "__main__":
    app()
