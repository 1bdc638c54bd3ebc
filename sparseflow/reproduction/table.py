"""The table of reproductions: runs checks, keeps what they found, and writes docs/reproduction.md from it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from sparseflow.reproduction.claims import CLAIMS, Claim
from sparseflow.reproduction.parts import Parts
from sparseflow.training.records import write_json

Status = Literal["holds", "missed", "open"]
KEPT = "reproduction.json"
PAGE = "reproduction.md"


@dataclass(frozen=True)
class Result:
    """What became of a row. `open`: it was not run, or what it needs is not there."""

    row: str
    status: Status
    measured: str
    seeds: tuple[int, ...] = ()
    seconds: float = 0.0


def reproduce(claim: Claim, parts: Parts, seeds: Sequence[int] = ()) -> Result:
    """Runs one check, by its own seeds or those given. Its seconds include those of parts that others share."""
    if claim.missing:
        return Result(claim.row, "open", f"needs {', '.join(claim.missing)}")
    chosen = _chosen(claim, seeds)
    part, seconds, found = claim.load_part(), 0.0, list[Any](chosen)
    if part is not None:
        found, seconds = parts.found(part, chosen)
    began = time.perf_counter()
    outcome = claim.load()(found)
    status: Status = "holds" if outcome.holds else "missed"
    return Result(claim.row, status, outcome.measured, chosen, seconds + time.perf_counter() - began)


def reproduce_all(
    claims: Sequence[Claim], out: Path, parts: Parts, seeds: Sequence[int] = (), show: Callable[[Result], None] = print
) -> list[Result]:
    """Runs the checks and lays what they found over what `out` holds; the page is written after each of them.

    Exact rows come first, alone; then all parts at once.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = []
    # False before True: exact rows come first.
    for claim in sorted(claims, key=lambda claim: not claim.fast):
        if not claim.fast:
            _begin(claims, parts, seeds)
        result = reproduce(claim, parts, seeds)
        found.append(result)
        known = {**read_results(out), result.row: result}
        write_json(out / KEPT, {row: asdict(one) for row, one in known.items()})
        (out / PAGE).write_text(page(known), encoding="utf-8")
        show(result)
    return found


def _begin(claims: Sequence[Claim], parts: Parts, seeds: Sequence[int]) -> None:
    for claim in claims:
        part = None if claim.missing else claim.load_part()
        if part is not None:
            parts.begin(part, _chosen(claim, seeds))


def _chosen(claim: Claim, seeds: Sequence[int]) -> tuple[int, ...]:
    return tuple(seeds) if seeds and claim.seeds else claim.seeds


def read_results(out: Path) -> dict[str, Result]:
    """What a folder holds, by row; nothing where it has no table yet."""
    path = out / KEPT
    if not path.exists():
        return {}
    return {row: Result(**{**one, "seeds": tuple(one["seeds"])}) for row, one in json.loads(path.read_text()).items()}


def page(results: Mapping[str, Result]) -> str:
    """The whole table in Markdown; rows without a result stand as open."""
    rows = [_row(claim, results.get(claim.row) or Result(claim.row, "open", "not run")) for claim in CLAIMS]
    counts = {status: sum(f"| {status} |" in row for row in rows) for status in ("holds", "**missed**", "open")}
    head = [
        "# Reproduction",
        "",
        "Claims of papers, checked on small networks. `make reproduce` runs all rows and writes this page;",
        "`sparseflow reproduce 7 12` runs some. Misses are shown as misses. Data and steps are not the papers', so",
        "that only patterns are checked, never an absolute accuracy. Gaps are paired by seed: the mean, in brackets",
        "each seed.",
        "",
        f"{counts['holds']} hold, {counts['**missed**']} missed, {counts['open']} open; torch {torch.__version__}.",
        "",
        "| row | the paper's claim | our check | tolerance | seeds | measured | result | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def line(result: Result) -> str:
    """One row for the terminal."""
    return f"{result.row:>4}  {result.status:<7}  {result.seconds:>7.1f} s  {result.measured}"


def _row(claim: Claim, result: Result) -> str:
    status = "**missed**" if result.status == "missed" else result.status
    seeds = ", ".join(map(str, result.seeds)) or "–"
    seconds = "–" if result.status == "open" else f"{result.seconds:.1f}"
    cells = [claim.row, claim.paper, claim.check, claim.tolerance, seeds, result.measured, status, seconds]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
