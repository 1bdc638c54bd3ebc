"""Plans made ahead of a run: for a recipe at a density, or read from another run to be replayed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sparseflow.hardware.plan import Plan, plan, workloads
from sparseflow.hardware.traffic import Charge, charge
from sparseflow.recipe_pruning import make_pattern
from sparseflow.recipes import Recipe, make_trainer
from sparseflow.training.pruning import prune

# By seed and round.
Plans = Mapping[int, Mapping[int, Plan]]


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


def plan_recipe(recipe: Recipe, density: float, fresh: bool = False) -> Plan:
    """The plan of a recipe's model at a density, with the recipe's pattern and allocation, at its batch size.

    With `fresh` everything is timed anew, whatever timings are kept on disk.
    """
    trainer = make_trainer(recipe, recipe.seeds[0])
    spec = recipe.pruning
    allocation = "uniform" if spec.allocation == "layerwise" else spec.allocation
    masks = prune(
        trainer.model,
        density,
        pattern=make_pattern(spec.pattern, trainer),
        allocation=allocation,
        floor=spec.floor,
        param_filter=spec.param_filter,
    )
    return plan(trainer.model, masks, trainer.sample(), recipe.backend, fresh)


def wafer_step(recipe: Recipe, masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the machine model of a wafer needs to know of a recipe's step with these masks: see `report.WaferStep`."""
    from sparseflow.hardware.wafer import network_of

    trainer = make_trainer(recipe, recipe.seeds[0])
    sample = trainer.sample()
    network = network_of(workloads(trainer.model, masks, sample), len(sample))
    systems = 1 if recipe.stream is None else recipe.stream.systems
    return {"network": network.to_json(), "batch": recipe.training.batch_size, "systems": systems}


def charge_recipe(recipe: Recipe, made: Plan, world: int) -> Charge:
    """What training a recipe's model by a plan costs each of `world` ranks."""
    return charge(make_trainer(recipe, recipe.seeds[0]).model, made, world)
