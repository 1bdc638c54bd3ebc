"""All checks of a launch, in the order in which a reader wants to know."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparseflow.doctor import together
from sparseflow.doctor.accelerate_config import Asked, check_accelerate, read_accelerate, what_starts
from sparseflow.doctor.batches import check_batch
from sparseflow.doctor.deepspeed_config import check_deepspeed
from sparseflow.doctor.devices import check_devices, seen_gpus
from sparseflow.doctor.finding import Finding, ok, wrong
from sparseflow.doctor.folder import check_folder, existing
from sparseflow.doctor.network import Network, check_network
from sparseflow.doctor.space import check_space, needed_bytes
from sparseflow.doctor.versions import check_timm, check_torch, check_versions, installed, requirements
from sparseflow.ranks import ALONE, Ranks
from sparseflow.recipes import Recipe, load_recipe


@dataclass(frozen=True)
class Launch:
    """What is to be launched, as far as it is known: each check looks at what there is."""

    recipe: str | None = None
    settings: Sequence[str] = ()
    config: Path | None = None
    deepspeed: Path | None = None
    processes: int | None = None
    engine: str = "ddp"
    out: Path | None = None


def examine(launch: Launch, ranks: Ranks = ALONE) -> list[Finding]:
    """What there is to say of a launch: on rank 0 alone, then what the ranks find out together. The same on all."""
    if launch.engine not in ("ddp", "fsdp2"):
        raise ValueError(f"--engine: expected ddp or fsdp2, got {launch.engine!r}")
    if launch.config is not None and launch.deepspeed is not None:
        raise ValueError(
            "expected --config, for sparse rounds, or --deepspeed, for dense ones, got both; check one first"
        )
    alone = ranks.first(lambda: [finding.to_json() for finding in _alone(launch, ranks.world)])
    found = [Finding(**row) for row in alone]
    return [*found, *_together(launch, ranks)] if ranks.world > 1 else found


def _alone(launch: Launch, world: int) -> Iterator[Finding]:
    needs = ["deepspeed"] if launch.deepspeed is not None else []
    yield check_versions(requirements(), needs=needs)
    for finding in (check_torch(installed("torch")), check_timm()):
        if finding is not None:
            yield finding
    recipe, said = _recipe(launch)
    yield from said
    asked, said = _config(launch, world)
    yield from said
    processes = world if world > 1 else asked.processes
    if launch.deepspeed is not None:
        yield from check_deepspeed(launch.deepspeed, recipe, processes)
    elif recipe is not None:
        yield check_batch(recipe.training, processes)
    network, said = _network(recipe)
    yield from said
    yield from _place(launch, recipe, network)
    if world == 1:
        yield check_devices(seen_gpus(), asked.here, asked.device)


def _together(launch: Launch, ranks: Ranks) -> Iterator[Finding]:
    recipe, _ = _recipe(launch)
    out = _out(launch, recipe)
    digest = None if recipe is None else together.recipe_digest(recipe)
    same = together.check_same(
        ranks, "recipes", {"recipe": digest}, "start all processes with the same recipe and settings"
    )
    if launch.recipe is not None:
        yield same
    yield together.check_same(ranks, "installed", dict(together.versions()), "install the same packages on every node")
    if ranks.broadcast(out is not None):
        yield together.check_token(ranks, out or Path())
    yield together.check_clocks(ranks)
    yield together.check_gpus(ranks, len(seen_gpus()), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _recipe(launch: Launch) -> tuple[Recipe | None, list[Finding]]:
    if launch.recipe is None:
        return None, []
    try:
        recipe = load_recipe(launch.recipe, launch.settings)
    except (ValueError, TypeError) as error:
        return None, [wrong("recipe", error)]
    return recipe, [ok("recipe", f"{recipe.name}: {recipe.pruning.rounds} prunings, {len(recipe.seeds)} seeds")]


def _config(launch: Launch, world: int) -> tuple[Asked, list[Finding]]:
    """What will be started, as the config, --processes or the present launch says; one process where none does."""
    processes = launch.processes or (world if world > 1 else None)
    asked, found = Asked(processes or 1, 1, "either"), []
    if launch.processes is not None and world > 1 and launch.processes != world:
        found.append(wrong("processes", f"--processes says {launch.processes}, and this launch has {world}"))
    if launch.config is None:
        return asked, found
    try:
        config = read_accelerate(launch.config)
    except ValueError as error:
        return asked, [*found, wrong("config", error)]
    return what_starts(config), [*found, *check_accelerate(config, launch.engine, processes)]


def _network(recipe: Recipe | None) -> tuple[Network | None, list[Finding]]:
    if recipe is None:
        return None, []
    found, network = check_network(recipe)
    return network, found


def _place(launch: Launch, recipe: Recipe | None, network: Network | None) -> Iterator[Finding]:
    out = _out(launch, recipe)
    if out is None:
        return
    yield from check_folder(out, recipe, named=launch.out is not None)
    if recipe is not None and network is not None:
        yield check_space(existing(out), needed_bytes(recipe, network, launch.deepspeed is not None))


def _out(launch: Launch, recipe: Recipe | None) -> Path | None:
    """The run's folder; without --out and a recipe there is none."""
    if launch.out is not None:
        return launch.out
    return None if recipe is None else Path("runs") / recipe.name
