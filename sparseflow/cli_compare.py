"""`sparseflow compare`: runs and their tickets side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from sparseflow.cli_output import AsJson, own_output


class Compared(Protocol):
    """What `compare` prints, as text or as JSON."""

    def to_json(self) -> dict[str, Any]: ...


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs of one network; two or more.")],
    barrier: Annotated[
        bool, typer.Option("--barrier", help="Also look between the first two on a straight line.")
    ] = False,
    stability: Annotated[
        str | None, typer.Option(help="Of one run: rewind steps to try, as in 0,100,500. Trains two copies from each.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hold runs against each other: data order, counts, verdicts; what their tickets share, beside chance."""
    with own_output():
        found = _compare(runs, barrier, stability)
    if as_json:
        typer.echo(json.dumps({key: value for one in found for key, value in one.to_json().items()}))
    else:
        typer.echo("\n\n".join(map(str, found)))


def _compare(runs: list[Path], barrier: bool, stability: str | None) -> list[Compared]:
    from sparseflow.comparison import compare_runs
    from sparseflow.ticket_map import map_tickets, stability_of

    if stability is not None:
        if len(runs) != 1 or not all(step.isdigit() for step in stability.split(",")):
            raise ValueError(
                f"--stability: expected one run and steps such as 0,100,500, got {len(runs)} runs and {stability!r}"
            )
        return [stability_of(runs[0], [int(step) for step in stability.split(",")])]
    if len(runs) < 2:
        raise ValueError("compare: expected two runs or more, got 1; for one alone, try --stability 0,100,500")
    pairwise = [compare_runs(*runs)] if len(runs) == 2 else []
    return [*pairwise, map_tickets(runs, barrier)]
