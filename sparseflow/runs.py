"""A run of a recipe: its seeds, a process each, and what they leave in one folder.

recipe.yaml  result.json  metrics.jsonl  report.html  ticket.safetensors  model.safetensors  checkpoints/seed-1/
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

import sparseflow
from sparseflow.files import Ticket, save
from sparseflow.files.atomic import atomic_write
from sparseflow.hardware import backends
from sparseflow.hardware.plan import Plan, plan
from sparseflow.hardware.sample import untouched
from sparseflow.masks import Masks
from sparseflow.recipes import Recipe, make_pruning, make_trainer, read_recipe
from sparseflow.report import write_report
from sparseflow.training.controls import train_control
from sparseflow.training.lottery import imp
from sparseflow.training.pruning import prunable_weights, prune
from sparseflow.training.records import Records, write_json
from sparseflow.training.trainer import Listener, Stopped
from sparseflow.training.verdict import ARMS, verdict

Plans = Mapping[int, Mapping[int, Plan]]


@dataclass(frozen=True)
class Run:
    """A folder and the recipe that it holds."""

    folder: Path
    recipe: Recipe

    def records(self, seed: int, plans: Plans | None = None) -> Records:
        """The records of one seed."""
        return Records(self.folder / "checkpoints" / f"seed-{seed}", (plans or {}).get(seed))


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
            for left in run.folder.glob("checkpoints/*/rewind.safetensors"):
                left.unlink()
        if replan:
            write_json(run.folder / "checkpoints.replanned.json", {"replanned": True})
    except OSError as error:
        raise ValueError(
            f"--out: cannot make the folder {run.folder} or write into it: {error.strerror}; choose another --out"
        ) from None
    return seconds


@dataclass(frozen=True)
class Task:
    """What the report says of the data."""

    kind: str
    input_shape: tuple[int, ...]


def check(recipe: Recipe) -> Task:
    """Builds what the recipe names once, so that what is wrong shows before a folder is made or a process started."""
    trainer = make_trainer(recipe, recipe.seeds[0])
    if recipe.backend != "auto":
        backends.get(recipe.backend)
    weights = prunable_weights(trainer.model, recipe.pruning.param_filter)
    everything = Masks.ones({name: weight.shape for name, weight in weights.items()}, trainer.device)
    make_pruning(recipe.pruning).check(trainer.model, everything)
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
    return Task(trainer.data.task, trainer.data.input_shape)


def note_stop(run: Run, status: int, reason: str, step: int | None, seconds: float) -> None:
    """Writes stopped.json: launchers swallow exit statuses."""
    content = {
        "status": status,
        "reason": reason,
        "step": step,
        "path": str(run.folder),
        "seconds": seconds,
    }
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
) -> None:
    """Finds the ticket of one seed and trains its controls; goes on where the folder says. Raises Stopped."""
    recipe = run.recipe
    records = run.records(seed, plans)
    if replan:
        records.forget_plans()
    about: dict[str, Any] = {
        "seed": seed,
        "kind": "round",
        "round": records.finished_rounds(),
    }
    trainer = make_trainer(recipe, seed, lambda event: listener({**about, **event}))
    trainer.should_stop = should_stop
    spec = recipe.pruning
    for ticket in imp(
        trainer,
        rounds=spec.rounds,
        rate=spec.rate,
        density=spec.density,
        schedule=spec.schedule,
        rewind_to=spec.rewind_to,
        rewind=spec.rewind,
        backend=recipe.backend,
        criterion=spec.criterion,
        allocation=spec.allocation,
        rates=spec.rates,
        floor=spec.floor,
        param_filter=spec.param_filter,
        seed=seed,
        records=records,
    ):
        listener({"seed": seed, "kind": "round", "event": "trained", **_metrics(ticket.provenance["metrics"])})
        about["round"] = ticket.round + 1
    rewind_point = records.rewind_point(trainer.device)
    assert rewind_point is not None
    for number in recipe.controls.rounds:
        ticket = records.ticket(number)
        for kind in recipe.controls.kinds:
            about.update(kind=kind, round=number)
            if records.metrics(number, kind) is None:
                if should_stop():
                    raise Stopped(0)
                train_control(trainer, ticket, kind, rewind_point, records)
            listener({"seed": seed, "kind": kind, "event": "trained", **_metrics(records.metrics(number, kind))})


def _metrics(found: object) -> dict[str, Any]:
    assert isinstance(found, dict)
    return found


def trainings(recipe: Recipe) -> int:
    """How many networks one seed trains."""
    return recipe.pruning.rounds + 1 + len(recipe.controls.rounds) * len(recipe.controls.kinds)


def read_plans(path: Path, recipe: Recipe) -> dict[int, dict[int, Plan]]:
    """Plans to replay, by seed and round, from a `result.json` or from what `sparseflow plan --json` printed.

    The latter holds for every seed and round. `ValueError` for anything else, or where a seed has no plan.
    """
    try:
        content = json.loads(path.read_text())
        recorded = content.get("plan", content) if isinstance(content, dict) else {}
        return _plans_of(recorded if isinstance(recorded, dict) else {}, recipe)
    # Not JSON and not text are ValueErrors too.
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--plan {path}: expected a result.json or the output of `sparseflow plan --json`: {error}"
        ) from None


def _plans_of(recorded: dict[str, Any], recipe: Recipe) -> dict[int, dict[int, Plan]]:
    if "rows" in recorded:
        one = Plan.from_json(recorded)
        return {seed: dict.fromkeys(range(1, recipe.pruning.rounds + 1), one) for seed in recipe.seeds}
    missing = [seed for seed in recipe.seeds if str(seed) not in recorded]
    if missing:
        raise ValueError(f"expected plans for seeds {recipe.seeds}, got none for {missing}")
    if not all(isinstance(recorded[str(seed)], list) for seed in recipe.seeds):
        raise ValueError("expected a list of plans for each seed, one a round")
    return {
        seed: {number: Plan.from_json(one) for number, one in enumerate(recorded[str(seed)]) if one is not None}
        for seed in recipe.seeds
    }


def collect(run: Run, task: Task, seconds: float) -> dict[str, Any]:
    """result.json of a finished run: everything its seeds recorded, and the verdict."""
    recipe = run.recipe
    rounds: list[dict[str, Any]] = []
    controls: list[dict[str, Any]] = []
    plans: dict[str, Any] = {}
    for seed in recipe.seeds:
        records = run.records(seed)
        for number in range(recipe.pruning.rounds + 1):
            rounds.append({"seed": seed, **_metrics(records.metrics(number))})
        for number in recipe.controls.rounds:
            for kind in recipe.controls.kinds:
                controls.append({"seed": seed, **_metrics(records.metrics(number, kind))})
        numbered = [records.plan(number) for number in range(recipe.pruning.rounds + 1)]
        plans[str(seed)] = [None if one is None else one.to_json() for one in numbered]
    verdicts = [_verdict(run, number) for number in recipe.controls.rounds or [recipe.pruning.rounds]]
    return {
        "sparseflow": sparseflow.__version__,
        "name": recipe.name,
        "task": task.kind,
        "recipe": recipe.model_dump(mode="json"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": _machine(recipe),
        "seeds": recipe.seeds,
        "seconds": seconds,
        "replanned": (run.folder / "checkpoints.replanned.json").exists(),
        "plan": plans,
        "rounds": rounds,
        "controls": controls,
        "verdict": verdicts[-1],
        "verdicts": verdicts,
    }


def _verdict(run: Run, number: int) -> dict[str, Any]:
    arms = {}
    for arm in ARMS:
        kind, at = {"ticket": ("round", number), "dense": ("round", 0)}.get(arm, (arm, number))
        every = [run.records(seed) for seed in run.recipe.seeds]
        if all(records.metrics(at, kind) is not None for records in every):
            arms[arm] = [records.scores(at, kind) for records in every]
    density = _metrics(run.records(run.recipe.seeds[0]).metrics(number))["density"]
    return {"round": number, "density": density, **verdict(arms).to_json()}


def _machine(recipe: Recipe) -> dict[str, Any]:
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "workers": recipe.workers,
        "threads": worker_threads(recipe),
    }


def worker_threads(recipe: Recipe) -> int:
    """Threads of each seed's process."""
    return recipe.threads or max(1, (os.cpu_count() or 1) // min(recipe.workers, len(recipe.seeds)))


def finish(run: Run, task: Task, started: float) -> dict[str, Any]:
    """Writes result, report, ticket and model of a finished run; returns the result."""
    before = run.folder / "result.json"
    spent = json.loads(before.read_text())["seconds"] if before.exists() else 0.0
    result = collect(run, task, spent + time.monotonic() - started)
    records = run.records(run.recipe.seeds[0])
    ticket = records.ticket(result["verdict"]["round"])
    save(ticket, run.folder / "ticket.safetensors")
    save(records.early(run.recipe.pruning.rounds), run.folder / "model.safetensors", format="compact")
    last = run.recipe.pruning.rounds
    pictured = sorted({0, last // 3, 2 * last // 3, result["verdict"]["round"]})
    masks = {number: _arrays(records.ticket(number)) for number in pictured}
    write_report(result, run.folder / "report.html", masks=masks, input_shape=task.input_shape)
    write_json(before, result)
    return result


def _arrays(ticket: Ticket) -> dict[str, NDArray[np.bool_]]:
    return {name: mask.numpy() for name, mask in ticket.masks.items()}


def plan_recipe(recipe: Recipe, density: float) -> Plan:
    """The plan of a recipe's model at a density, with the recipe's allocation, at its batch size."""
    trainer = make_trainer(recipe, recipe.seeds[0])
    spec = recipe.pruning
    allocation = "uniform" if spec.allocation == "layerwise" else spec.allocation
    masks = prune(trainer.model, density, allocation=allocation, floor=spec.floor, param_filter=spec.param_filter)
    return plan(trainer.model, masks, trainer.sample(), recipe.backend)
