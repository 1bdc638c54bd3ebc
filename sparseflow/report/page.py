"""The report page: what a run found, in one HTML file that needs nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from sparseflow.report import figures
from sparseflow.report.instrument_words import erasure_table, shared_in_words
from sparseflow.report.mask_pictures import MasksByRound, input_pictures, mask_pictures
from sparseflow.report.result import (
    Result,
    accuracy,
    against_dense,
    early_stop,
    levels,
    loss,
    read_result,
    seconds,
    state_ratio,
    step_seconds,
)
from sparseflow.report.search_words import search_in_words, search_table
from sparseflow.report.tables import (
    Table,
    interval_table,
    layer_densities,
    plan_table,
    round_table,
    seed_table,
)
from sparseflow.report.wafer_figures import wafer_pictures
from sparseflow.report.words import MISSING, accuracy_percent, duration, headline, percent, times


def write_report(
    result: Mapping[str, object],
    path: Path,
    *,
    masks: MasksByRound | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> None:
    """Write the page for a run's `result.json` to `path`.

    `masks` maps round → parameter name → mask, for the rounds to picture, each in the order of the layers;
    `input_shape`, (H, W) or (C, H, W), lays the inputs of the first layer out as an image.
    Raises ValueError where `result` lacks a field or has one of the wrong type, TypeError for flat `masks`.
    """
    if masks is not None and not all(isinstance(number, int) for number in masks):
        raise TypeError(
            "masks maps round → parameter name → mask; for the masks of one round pass {round: masks}, "
            f"got keys {', '.join(map(repr, masks))}"
        )
    run = read_result(result)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sparseflow.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html")
    path.write_text(template.render(_contents(run, masks or {}, input_shape or ())), encoding="utf-8")


def _contents(run: Result, masks: MasksByRound, input_shape: tuple[int, ...]) -> dict[str, Any]:
    verdict_round = run.verdict.round if run.verdict is not None else None
    pictured = verdict_round if verdict_round in masks else max(masks, default=None)
    return {
        "run": run,
        "verdict_round": None if verdict_round is None else str(verdict_round),
        "headline": headline(run.verdict),
        "missing": MISSING,
        "cost": _cost_in_words(run),
        "cards": _cards(run, verdict_round),
        "figures": _figures(run),
        "search": None if run.search is None else search_in_words(run.search),
        "search_costs": None if run.search is None else search_table(run.search),
        "erased": None if run.instruments is None else erasure_table(run.instruments),
        "seeds_share": "" if run.instruments is None else shared_in_words(run.instruments),
        "wafer": _wafer(run),
        "intervals": interval_table(run.verdict.comparisons) if run.verdict is not None else None,
        "rounds": round_table(run),
        "seeds": seed_table(run),
        "layers": layer_densities(run),
        "plan": plan_table(run, verdict_round),
        "pictured": pictured,
        "input_pictures": input_pictures(masks, input_shape, verdict_round),
        "mask_pictures": mask_pictures(masks[pictured]) if pictured is not None else [],
        "provenance": _provenance(run),
        "recipe": yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True) if run.recipe else "",
    }


def _figures(run: Result) -> dict[str, Markup | None]:
    accuracy_label, loss_label = "test accuracy at early stop, %", "test loss at early stop"
    drawn = {
        "intervals": figures.intervals(run.verdict.comparisons) if run.verdict is not None else None,
        "accuracy": figures.against_density(run, accuracy, accuracy_label, size=figures.WIDE, scale=100.0),
        "loss": figures.against_density(run, loss, loss_label, size=figures.WIDE),
        "early_stop": figures.against_density(run, early_stop, "early-stop step", size=figures.WIDE),
        "seconds": figures.against_density(run, seconds, "seconds of a round", size=figures.HALF),
        "cost": figures.cost_against_density(run),
    }
    # These are SVG of our own making; the template escapes everything else.
    return {name: None if svg is None else Markup(svg) for name, svg in drawn.items()}


def _wafer(run: Result) -> dict[str, str | Markup] | None:
    found = wafer_pictures(run.wafer)
    if found is None:
        return None
    # SVG of our own making, as above.
    return {"words": found.words, "timeline": Markup(found.timeline), "speedup": Markup(found.speedup)}


def _cards(run: Result, verdict_round: int | None) -> list[tuple[str, str, str]]:
    """The figures that matter most, each as title, value and what to compare it with."""
    all_levels = levels(run.rounds)
    if not all_levels:
        return []
    level = next((level for level in all_levels if level.round == verdict_round), all_levels[-1])
    dense = next((level for level in all_levels if level.round == 0), None)
    step_ratio = against_dense(step_seconds, run.rounds)
    seeds = "mean of several seeds" if len(level.networks) > 1 else "one seed"
    dense_accuracy = accuracy_percent(dense.mean(accuracy) if dense is not None else None)
    return [
        ("Weights kept", percent(level.density), f"round {level.round}"),
        ("Test accuracy", accuracy_percent(level.mean(accuracy)), f"dense: {dense_accuracy}; {seeds}"),
        (
            "Step time against dense",
            times(level.mean(step_ratio)),
            f"{duration(level.mean(step_seconds))} a step",
        ),
        ("Training state against dense", times(level.mean(state_ratio)), "weights, gradients, optimizer; counted"),
    ]


def _cost_in_words(run: Result) -> str:
    """What the hardware gave back for the pruned weights, with the rounds where it gave nothing."""
    step_ratio = against_dense(step_seconds, run.rounds)
    pruned = [(level, mean) for level in levels(run.rounds) if level.round and (mean := level.mean(step_ratio))]
    if not pruned:
        return ""
    best, least = min(pruned, key=lambda found: found[1])
    said = f"Round {best.round}, at {percent(best.density)} of the weights, had the fastest step: "
    said += f"{times(least)} the time of the dense step."
    slower = [str(level.round) for level, mean in pruned if mean > 1]
    return (
        f"{said} Slower than dense: {'round' if len(slower) == 1 else 'rounds'} {', '.join(slower)}."
        if slower
        else said
    )


def _provenance(run: Result) -> Table:
    rows = [
        ["task", run.task],
        ["seeds", ", ".join(map(str, run.seeds)) or MISSING],
        ["time of the whole run", duration(run.seconds)],
        ["sparseflow", run.sparseflow or MISSING],
        *([name, str(version)] for name, version in run.versions.items()),
        *([name, str(value)] for name, value in run.machine.items()),
    ]
    return Table(["", ""], rows)
