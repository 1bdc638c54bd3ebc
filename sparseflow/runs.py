"""A run of a recipe: its seeds, a process each, and what they leave in one folder.

recipe.yaml  result.json  metrics.jsonl  report.html  ticket.safetensors  model.safetensors  checkpoints/seed-1/
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from sparseflow import data
from sparseflow.algorithms import first_round, make_dynamic, make_strong
from sparseflow.atomic import atomic_write
from sparseflow.files import Ticket
from sparseflow.files.commit import remove
from sparseflow.hardware import backends
from sparseflow.hardware.flops import LayerFlops, layer_flops
from sparseflow.hardware.model import dense_state
from sparseflow.hardware.sample import untouched
from sparseflow.hardware.weights import weights_of
from sparseflow.masks import Masks
from sparseflow.ranks import ALONE, Ranks, current
from sparseflow.recipes import Named, Recipe, make_pruning, make_trainer, read_recipe
from sparseflow.replay import Plans
from sparseflow.training.controls import train_control
from sparseflow.training.criteria import Evidence
from sparseflow.training.engines import EngineName
from sparseflow.training.lottery import train_dynamic
from sparseflow.training.pruning import Start, prunable_weights
from sparseflow.training.records import Records, write_json
from sparseflow.training.search import train_rounds
from sparseflow.training.strong_ticket import strong_ticket
from sparseflow.training.trainer import Listener, Stopped, Trainer


@dataclass(frozen=True)
class Run:
    """A folder and the recipe that it holds."""

    folder: Path
    recipe: Recipe

    def records(self, seed: int, plans: Plans | None = None, ranks: Ranks = ALONE) -> Records:
        """The records of one seed."""
        first = first_round(self.recipe.algorithm.name)
        return Records(self.folder / "checkpoints" / f"seed-{seed}", (plans or {}).get(seed), ranks, first)


def open_run(folder: Path, recipe: Recipe, resume: bool) -> Run:
    """The run in `folder`, new or resumed. `ValueError` where it holds another one, or one and `resume` is not said.

    A run that ended before it saved anything, as after a wrong input, is in nobody's way.
    """
    kept = folder / "recipe.yaml"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out: expected a folder, got the file {folder}; choose another --out")
    if kept.exists() and (resume or _has_trained(folder)):
        before = read_recipe(kept)
        changed = [key for key in Recipe.model_fields if getattr(before, key) != getattr(recipe, key)]
        if changed:
            raise ValueError(
                f"{folder} holds a run of another recipe: {', '.join(changed)} differ; choose another --out, or "
                "remove that folder"
            )
        if not resume:
            raise ValueError(f"{folder} holds a run of this recipe; pass --resume to go on with it, or another --out")
    elif folder.exists() and not kept.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no run; choose another --out")
    return Run(folder, recipe)


def _has_trained(folder: Path) -> bool:
    return any(folder.glob("checkpoints/*/round-*"))


def resume_command(run: Run, plan: Path | None) -> str:
    """What to type to go on with a run, whatever settings it was started with; `plan` is the file that it replays."""
    replayed = [] if plan is None else ["--plan", str(plan)]
    recipe, folder = str(run.folder / "recipe.yaml"), str(run.folder)
    return shlex.join(["sparseflow", "run", recipe, "--out", folder, *replayed, "--resume"])


def begin(run: Run, replan: bool = False) -> float:
    """Writes the recipe into the run's folder, so that it can be resumed, and whether it was ever planned anew.

    Returns the seconds that the run had taken when it was stopped.
    """
    stopped = run.folder / "stopped.json"
    text = yaml.safe_dump(run.recipe.model_dump(mode="json"), sort_keys=False)
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        seconds = float(json.loads(stopped.read_text())["seconds"]) if stopped.exists() else 0.0
        with atomic_write(run.folder / "recipe.yaml") as file:
            file.write(text.encode())
        stopped.unlink(missing_ok=True)
        if not _has_trained(run.folder):
            # Nothing rests on these yet, and they may be of another recipe.
            for left in run.folder.glob("checkpoints/*/rewind"):
                remove(left)
        if replan:
            write_json(run.folder / "checkpoints.replanned.json", {"replanned": True})
    except OSError as error:
        raise ValueError(
            f"--out: cannot make the folder {run.folder} or write into it: {error.strerror}; choose another --out"
        ) from None
    return seconds


def make_local(spec: Named, say: Callable[[str], None] = lambda text: None) -> None:
    """Fetches one of our data sets where it is not on this machine yet, and says so."""
    if "path" in spec.options:
        # The user's own file, which `load` will read or miss.
        return
    if data.available().get(spec.name, "").startswith("not here"):
        say(f"fetching {spec.name} …")
        data.fetch(spec.name)


@dataclass(frozen=True)
class Task:
    """What the report says of the data, and of what a step on them costs when nothing is pruned."""

    kind: str
    input_shape: tuple[int, ...]
    # Of a whole step, all micro-batches of all ranks.
    flops: Mapping[str, LayerFlops] = field(default_factory=dict)


def check(recipe: Recipe) -> Task:
    """Builds what the recipe names once, so that what is wrong shows before a folder is made or a process started."""
    trainer = make_trainer(recipe, recipe.seeds[0])
    if recipe.backend != "auto":
        backends.get(recipe.backend)
    weights = prunable_weights(trainer.model, recipe.pruning.param_filter)
    everything = Masks.ones({name: weight.shape for name, weight in weights.items()}, weights_of(trainer.model).device)
    if make_strong(recipe.algorithm.name, recipe.algorithm.options) is None:
        method = make_dynamic(recipe.algorithm.name, recipe.algorithm.options, trainer.steps)
        prunes = make_pruning(recipe.pruning, trainer) if method is None else Start(method, recipe.pruning.param_filter)
        evidence = Evidence(trainer.batches(recipe.pruning.batches), trainer.loss, dense_state(trainer.model))
        prunes.check(trainer.model, everything, evidence)
    x, y = (tensor.to(trainer.device) for tensor in trainer.data.train.batch(torch.arange(2)))
    try:
        with torch.no_grad(), untouched(trainer.model):
            trainer.loss(trainer.model(x), y)
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"model {recipe.model.name!r} cannot train on data {recipe.data.name!r} with examples of shape "
            f"{trainer.data.input_shape} in {trainer.data.classes} classes: {error}; change model.options or "
            "data.options"
        ) from None
    flops = layer_flops(trainer.model, everything, trainer.sample())
    parts = trainer.accumulate * trainer.ranks.world
    whole = {name: replace(layer, product=layer.product * parts) for name, layer in flops.items()}
    return Task(trainer.data.task, trainer.data.input_shape, whole)


def note_stop(run: Run, status: int, reason: str, step: int | None, seconds: float) -> None:
    """Writes stopped.json, where the disk takes it: launchers swallow exit statuses."""
    content = {
        "status": status,
        "reason": reason,
        "step": step,
        "path": str(run.folder),
        "seconds": seconds,
    }
    with contextlib.suppress(OSError):
        # A full disk may be why the run stopped, and must not hide it.
        write_json(run.folder / "stopped.json", content)


def load_run(folder: Path) -> Run:
    """The run that a folder holds. `ValueError` where there is none."""
    kept = folder / "recipe.yaml"
    if not kept.exists():
        raise ValueError(f"{folder} holds no run: expected {kept}; give the --out folder of `sparseflow run`")
    return Run(folder, read_recipe(kept))


def run_seed(
    run: Run,
    seed: int,
    listener: Listener,
    should_stop: Callable[[], bool] = lambda: False,
    plans: Plans | None = None,
    replan: bool = False,
    engine: EngineName = "ddp",
) -> None:
    """Finds the ticket of one seed and trains its controls; goes on where the folder says. Raises Stopped."""
    recipe = run.recipe
    records = run.records(seed, plans, current())
    if replan:
        records.forget_plans()
    about: dict[str, Any] = {
        "seed": seed,
        "kind": "round",
        "round": max(records.first, records.finished_rounds()),
    }
    trainer = make_trainer(recipe, seed, lambda event: listener({**about, **event}), engine, run.folder)
    trainer.should_stop = should_stop
    try:
        _train(trainer, recipe, seed, records, listener, about)
    finally:
        trainer.close()


def _train(
    trainer: Trainer, recipe: Recipe, seed: int, records: Records, listener: Listener, about: dict[str, Any]
) -> None:
    for ticket in _tickets(trainer, recipe, seed, records):
        listener({"seed": seed, "kind": "round", "event": "trained", **metrics_of(ticket.provenance["metrics"])})
        about["round"] = ticket.round + 1
    rewind_point = records.rewind_point(trainer.device)
    assert rewind_point is not None
    for number in recipe.controls.rounds:
        ticket = records.ticket(number)
        for kind in recipe.controls.kinds:
            about.update(kind=kind, round=number)
            if records.metrics(number, kind) is None:
                if trainer.stopping():
                    raise Stopped(0)
                train_control(trainer, ticket, kind, rewind_point, records)
            listener({"seed": seed, "kind": kind, "event": "trained", **metrics_of(records.metrics(number, kind))})


def _tickets(trainer: Trainer, recipe: Recipe, seed: int, records: Records) -> Iterator[Ticket]:
    spec, algorithm = recipe.pruning, recipe.algorithm
    strong = make_strong(algorithm.name, algorithm.options)
    if strong is not None:
        yield strong_ticket(trainer, strong, param_filter=spec.param_filter, records=records)
        return
    method = make_dynamic(algorithm.name, algorithm.options, trainer.steps)
    if method is not None:
        yield from train_dynamic(
            trainer, method, backend=recipe.backend, param_filter=spec.param_filter, records=records
        )
        return
    yield from train_rounds(
        trainer,
        replace(make_pruning(spec, trainer), seed=seed),
        records,
        algorithm=algorithm.name,
        rewind=spec.rewind,
        rewind_to=spec.rewind_to,
        backend=recipe.backend,
        batches=spec.batches,
    )


def metrics_of(found: object) -> dict[str, Any]:
    """Metrics that are known to be there."""
    assert isinstance(found, dict)
    return found


def trained_rounds(recipe: Recipe) -> range:
    """The numbers of the rounds that are trained."""
    return range(first_round(recipe.algorithm.name), recipe.pruning.rounds + 1)


def trainings(recipe: Recipe) -> int:
    """How many networks one seed trains."""
    return len(trained_rounds(recipe)) + len(recipe.controls.rounds) * len(recipe.controls.kinds)


def worker_threads(recipe: Recipe) -> int:
    """Threads of each seed's process."""
    return recipe.threads or max(1, (os.cpu_count() or 1) // min(recipe.workers, len(recipe.seeds)))
