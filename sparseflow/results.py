"""What a finished run comes to: result.json, the verdict, the report, the ticket and the model."""

from __future__ import annotations

import json
import os
import platform
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import sparseflow
from sparseflow.algorithms import make_dynamic, make_strong
from sparseflow.files import Ticket, save
from sparseflow.recipes import Recipe
from sparseflow.replay import wafer_step
from sparseflow.report import write_report
from sparseflow.runs import Run, Task, metrics_of, trained_rounds, worker_threads
from sparseflow.training.instruments import Instruments, instruments
from sparseflow.training.records import write_json
from sparseflow.training.search_cost import search_cost
from sparseflow.training.success import success
from sparseflow.training.verdict import ARMS, verdict


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
    wanted = {0, last // 3, 2 * last // 3, result["verdict"]["round"]}
    pictured = sorted(wanted & set(trained_rounds(run.recipe)))
    masks = {number: _arrays(records.ticket(number)) for number in pictured}
    write_report(result, run.folder / "report.html", masks=masks, input_shape=task.input_shape)
    write_json(before, result)
    return result


def collect(run: Run, task: Task, seconds: float) -> dict[str, Any]:
    """result.json of a finished run: everything its seeds recorded, and the verdict."""
    recipe, last = run.recipe, run.recipe.pruning.rounds
    rounds: list[dict[str, Any]] = []
    controls: list[dict[str, Any]] = []
    plans: dict[str, Any] = {}
    for seed in recipe.seeds:
        records = run.records(seed)
        for number in trained_rounds(recipe):
            rounds.append({"seed": seed, **metrics_of(records.metrics(number))})
        for number in recipe.controls.rounds:
            for kind in recipe.controls.kinds:
                controls.append({"seed": seed, **metrics_of(records.metrics(number, kind))})
        numbered = [records.plan(number) for number in range(recipe.pruning.rounds + 1)]
        plans[str(seed)] = [None if one is None else one.to_json() for one in numbered]
    numbers = recipe.controls.rounds or [recipe.pruning.rounds]
    verdicts = [_verdict(run, number) for number in numbers]
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
        "wafer": None if recipe.stream is None else wafer_step(recipe, run.records(recipe.seeds[0]).ticket(last).masks),
        "search": _search(run, task, numbers[-1], rounds),
        "instruments": _instruments(run).to_json(),
    }


def _verdict(run: Run, number: int) -> dict[str, Any]:
    density = metrics_of(run.records(run.recipe.seeds[0]).metrics(number))["density"]
    return {"round": number, "density": density, **verdict(_arms(run, number)).to_json()}


def _arms(run: Run, number: int) -> dict[str, list[NDArray[np.float32]]]:
    arms = {}
    for arm in ARMS:
        kind, at = {"ticket": ("round", number), "dense": ("round", 0)}.get(arm, (arm, number))
        every = [run.records(seed) for seed in run.recipe.seeds]
        if all(records.metrics(at, kind) is not None for records in every):
            arms[arm] = [records.scores(at, kind) for records in every]
    return arms


def _search(run: Run, task: Task, number: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """What finding the tickets of that round cost, and how often there was one."""
    recipe, steps = run.recipe, run.recipe.training.steps
    method = make_dynamic(recipe.algorithm.name, recipe.algorithm.options, steps)
    # A strong ticket's scores are trained over all weights.
    strong = make_strong(recipe.algorithm.name, recipe.algorithm.options) is not None
    settled = not strong and (method is None or method.settled == 0)
    costs = [
        search_cost(
            [one for one in rounds if one["seed"] == seed], number, steps, task.flops, method is not None, settled
        )
        for seed in recipe.seeds
    ]
    found = success(recipe.seeds, _arms(run, number), rounds)
    return {"round": number, "costs": [cost.to_json() for cost in costs], "success": found.to_json()}


def _instruments(run: Run) -> Instruments:
    """Of the last round's tickets, whose weights are kept."""
    last = run.recipe.pruning.rounds
    every = [run.records(seed) for seed in run.recipe.seeds]
    return instruments([records.ticket(last) for records in every], [records.early(last).state for records in every])


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


def _arrays(ticket: Ticket) -> dict[str, NDArray[np.bool_]]:
    return {name: mask.numpy() for name, mask in ticket.masks.items()}
