"""What a recipe says under `pruning`, and the objects that it names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparseflow.masks.criteria import Criterion
from sparseflow.masks.importance import Importance
from sparseflow.masks.patterns import NM, Block, Pattern, Unstructured
from sparseflow.resolve import call, choose
from sparseflow.training import criteria
from sparseflow.training.lottery import Rewind
from sparseflow.training.pruning import Pruning
from sparseflow.training.trainer import Trainer
from sparseflow.training.wiring import channels


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Named(Strict):
    """One of ours by name, or the user's own by `module:function`, with options for its arguments."""

    name: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class PruningSpec(Strict):
    rounds: int = Field(ge=0)
    rate: float | None = Field(None, ge=0, lt=1)
    density: float | None = Field(None, gt=0, le=1)
    schedule: Literal["constant", "cubic"] = "constant"
    # One of ours by name, or the user's own by `module:function`.
    criterion: str = "magnitude"
    # How many of the first batches a criterion that needs data looks at.
    batches: int = Field(1, ge=1)
    importance: Importance | None = None
    pattern: Named = Named(name="unstructured")
    allocation: Literal["global", "layerwise", "uniform", "erk"] = "global"
    rates: dict[str, float] | None = None
    floor: int | float | dict[str, int | float] | None = None
    param_filter: str | list[str] | None = None
    rewind: Rewind = "weights"
    rewind_to: int = Field(0, ge=0)


def make_pruning(spec: PruningSpec, trainer: Trainer | None = None) -> Pruning:
    """How the recipe prunes. `ValueError` for a combination that says nothing, or two things.

    Without the trainer, whose model the pattern `channel` must look at, that one is left out.
    """
    return Pruning(
        spec.rounds,
        rate=spec.rate,
        density=spec.density,
        schedule=spec.schedule,
        criterion=make_criterion(spec.criterion),
        importance=spec.importance,
        pattern=make_pattern(spec.pattern, trainer),
        allocation=spec.allocation,
        rates=spec.rates,
        floor=spec.floor,
        param_filter=spec.param_filter,
    )


def make_criterion(name: str) -> str | Criterion:
    """The name of one of ours, or the user's function. `ValueError` for a name that is neither."""
    found = choose("criterion", name, dict.fromkeys(criteria.names(), make_criterion))
    return cast(Criterion, found) if ":" in name else name


def make_pattern(spec: Named, trainer: Trainer | None) -> Pattern:
    """The pattern that a recipe names, ours or the user's `module:function`, made with its options."""

    def channel() -> Pattern:
        return Unstructured() if trainer is None else channels(trainer.model, trainer.sample())

    choices: dict[str, Callable[..., object]] = {
        "unstructured": Unstructured,
        "nm": NM,
        "block": Block,
        "channel": channel,
    }
    return cast(Pattern, call(choose("pattern", spec.name, choices), spec.options, f"pattern {spec.name}"))
