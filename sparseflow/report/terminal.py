"""A run's result in a dozen plain terminal lines."""

from collections.abc import Mapping

from sparseflow.report.result import (
    Level,
    Measure,
    Result,
    accuracy,
    against_dense,
    early_stop,
    gradient_ratio,
    levels,
    levels_by_kind,
    loss,
    read_result,
    step_seconds,
)
from sparseflow.report.search_words import search_in_words
from sparseflow.report.words import MISSING, Row, accuracy_percent, headline, number, percent, selected, times

_ROWS_SHOWN = 7


def summary(result: Mapping[str, object]) -> str:
    """The verdict with its interval and a table of rounds, about twelve lines without a trailing newline.

    Of many rounds it shows some, evenly spaced, always with the first, the last and that of the verdict.
    Raises ValueError where `result` lacks a field or has one of the wrong type.
    """
    run = read_result(result)
    lines = [f"{run.name}: {headline(run.verdict)}"]
    if run.verdict is not None:
        lines.append(run.verdict.reason)
    if run.search is not None:
        lines += search_in_words(run.search)
    if not run.rounds:
        return "\n".join([*lines, "No round has finished."])
    table = _table(run)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines.append("")
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in table]
    return "\n".join(lines)


def _table(run: Result) -> list[Row]:
    controls = levels_by_kind(run.controls)
    # A language task is read by its loss, and so are its controls.
    language = any(network.test_loss is not None for network in run.rounds) and run.task != "classification"
    score = loss if language else accuracy
    step_ratio = against_dense(step_seconds, run.rounds)
    header = ["round", "density", "test loss" if language else "test accuracy", *controls]
    # One process sends nothing.
    together = any(network.processes > 1 for network in run.rounds)
    rows = [[*header, "early stop", "step time / dense", *(["gradients sent / dense"] * together)]]
    all_levels = levels(run.rounds)
    verdict_round = run.verdict.round if run.verdict is not None else None
    for chosen in selected([level.round for level in all_levels], _ROWS_SHOWN, verdict_round):
        level = next(level for level in all_levels if level.round == chosen)
        beside = [next((c for c in kind if c.round == chosen), None) for kind in controls.values()]
        scores = [_mean(one, score, language) for one in (level, *beside)]
        rows.append(
            [
                str(chosen),
                percent(level.density),
                *scores,
                number(level.mean(early_stop)),
                times(level.mean(step_ratio)),
                *([times(level.mean(gradient_ratio))] * together),
            ]
        )
    return rows


def _mean(level: Level | None, score: Measure, language: bool) -> str:
    mean = level.mean(score) if level is not None else None
    if mean is None:
        return MISSING
    return f"{mean:.4f}" if language else accuracy_percent(mean)
