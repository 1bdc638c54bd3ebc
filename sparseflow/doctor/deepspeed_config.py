"""DeepSpeed's config beside the recipe, as the dense pre-rounds read the two."""

from __future__ import annotations

from pathlib import Path

from sparseflow.doctor.finding import Finding, ok, warning, wrong
from sparseflow.doctor.versions import check_compiler
from sparseflow.recipes import Recipe
from sparseflow.zero_config import describe, read_config, settle


def check_deepspeed(path: Path, recipe: Recipe | None, world: int) -> list[Finding]:
    """Whether the two agree, batch arithmetic included, and what DeepSpeed itself needs here."""
    try:
        config = read_config(path)
        found = [] if recipe is None else [_settled(path, config, recipe, world)]
    except ValueError as error:
        return [wrong("config", error)]
    bf16 = config.get("bf16")
    if isinstance(bf16, dict) and bf16.get("enabled") and "check_grad_overflow" not in bf16:
        # Without it a step that overflows is skipped by some versions and done by others.
        found.append(warning("config", f"{path}: say bf16.check_grad_overflow, whose default changes between versions"))
    return [*found, check_compiler()]


def _settled(path: Path, config: dict[str, object], recipe: Recipe, world: int) -> Finding:
    _, cut = settle(config, recipe.training, world)
    return ok(
        "config",
        f"{path}: {describe(config)}; batch {recipe.training.batch_size} = {cut.world} processes × "
        f"{cut.accumulate} × a micro-batch of {cut.micro}",
    )
