"""`sparseflow reproduce`: claims of papers, checked here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sparseflow.cli_output import AsJson


def reproduce(
    rows: Annotated[
        list[str] | None, typer.Argument(help="Rows of the table, such as 7 or 10a; without any, all.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the table is kept and written.")] = Path("runs/reproduction"),
    work: Annotated[Path, typer.Option(help="Where trainings are kept.")] = Path("runs/reproduction"),
    fast: Annotated[bool, typer.Option("--fast", help="Only rows that are exact and take seconds.")] = False,
    seeds: Annotated[str | None, typer.Option(help="Other seeds, as in 4,5,6.")] = None,
    processes: Annotated[
        int | None, typer.Option(help="Trainings at a time, of one thread each; without it, one a core.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what a run before has kept in --work.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check published claims: the paper's, our check, tolerance, seeds and result. Status 1 where one is missed."""
    import torch

    from sparseflow.reproduction.claims import find_claims
    from sparseflow.reproduction.parts import measuring
    from sparseflow.reproduction.table import line, reproduce_all

    claims = [claim for claim in find_claims(rows or []) if claim.fast or not fast]
    chosen = _seeds(seeds)
    with measuring(work, torch.get_num_threads() if processes is None else processes, resume) as parts:
        found = reproduce_all(
            claims, out, parts, chosen, show=lambda result: None if as_json else typer.echo(line(result))
        )
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        typer.echo(f"table: {out / 'reproduction.md'}")
    if any(one.status == "missed" for one in found):
        raise typer.Exit(1)


def _seeds(text: str | None) -> list[int]:
    try:
        return [] if text is None else [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds: expected numbers such as 4,5,6, got {text!r}") from None
