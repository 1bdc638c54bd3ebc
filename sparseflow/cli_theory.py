"""`sparseflow theory`: what theorems say about strong tickets in a network."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sparseflow.cli_output import AsJson


def theory(
    recipe: Annotated[str | None, typer.Argument(help="A recipe's file or name; its model is the target.")] = None,
    widths: Annotated[str | None, typer.Option(help="Or the target's widths, as in 784,300,100,10.")] = None,
    density: Annotated[float, typer.Option(help="The fraction of random numbers in a subset, up to 0.5.")] = 0.1,
    error: Annotated[float, typer.Option(help="How near to the target the ticket is to be.")] = 0.01,
    constant: Annotated[float, typer.Option(help="The theorems' constant, which nobody knows.")] = 1.0,
    trials: Annotated[int, typer.Option(min=0, help="Draws for each subset sum that is tried out.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Say how wide a random network must be to hold a good one of a density, untrained, and try subset sums out."""
    from sparseflow.theory import of_network

    found = of_network(_widths(recipe, widths), density, error, constant, trials)
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else str(found))


def _widths(recipe: str | None, widths: str | None) -> tuple[int, ...]:
    if (recipe is None) == (widths is None):
        raise ValueError("theory: expected a recipe or --widths, such as: sparseflow theory --widths 100,100")
    if widths is not None:
        try:
            return tuple(int(width) for width in widths.split(","))
        except ValueError:
            raise ValueError(f"--widths: expected numbers such as 784,300,100,10, got {widths!r}") from None
    assert recipe is not None
    from sparseflow.recipes import load_recipe, make_trainer
    from sparseflow.theory import widths_of

    chosen = load_recipe(recipe)
    return widths_of(make_trainer(chosen, chosen.seeds[0]).model)
