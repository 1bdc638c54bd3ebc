"""Recipes: a YAML file that says everything of a run, checked before anything starts.

Every field is typed and unknown keys are errors with the nearest match. `load_recipe` reads a file or one of the
recipes that come with sparseflow; `make_trainer` turns one into the objects that it names.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from torch import nn

from sparseflow import data, models
from sparseflow.algorithms import first_round, make_dynamic, make_strong
from sparseflow.recipe_pruning import Named as Named
from sparseflow.recipe_pruning import PruningSpec as PruningSpec
from sparseflow.recipe_pruning import Strict
from sparseflow.recipe_pruning import make_pruning as make_pruning
from sparseflow.recipe_stream import StreamSpec
from sparseflow.resolve import call, choose
from sparseflow.training import schedules
from sparseflow.training.controls import Kind
from sparseflow.training.engines import EngineName
from sparseflow.training.muon import Muon, muon_groups
from sparseflow.training.schedules import Schedule
from sparseflow.training.sign_in import SignIn
from sparseflow.training.trainer import Listener, Trainer

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "muon": Muon,
    "sgd": torch.optim.SGD,
    "sign-in": SignIn,
}


class OptimizerSpec(Strict):
    name: str
    lr: float = Field(gt=0)
    options: dict[str, Any] = Field(default={})


class TrainingSpec(Strict):
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    optimizer: OptimizerSpec
    schedule: Named = Named(name="constant")
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0)
    accumulate: int = Field(1, ge=1)
    evaluate_every: int | None = Field(None, ge=1)


_ONE_ROUND = PruningSpec.model_validate({"rounds": 1})


class ControlSpec(Strict):
    rounds: list[int] = Field(default=[])
    kinds: list[Kind] = Field(default=["reinit", "shuffle", "random"])


class Recipe(Strict):
    """A run: one task, one way to train it, one way to prune it, and the seeds to repeat it with."""

    name: str
    model: Named
    data: Named
    training: TrainingSpec
    # "imp", or a method whose masks change in training: see `sparseflow.algorithms`.
    algorithm: Named = Named(name="imp")
    pruning: PruningSpec = _ONE_ROUND
    controls: ControlSpec = ControlSpec()
    seeds: list[int] = Field([1], min_length=1)
    backend: str = "auto"
    # Train with sf.stream: weights and optimizer state live in a store.
    stream: StreamSpec | None = None
    # Seeds that run side by side, a process each, and the threads that each of them uses.
    workers: int = Field(1, ge=1)
    threads: int | None = Field(None, ge=1)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("expected distinct seeds")
        return seeds

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        late = [number for number in self.controls.rounds if not 1 <= number <= self.pruning.rounds]
        if late:
            raise ValueError(f"controls.rounds: expected rounds from 1 to {self.pruning.rounds}, got {late}")
        if self.pruning.rewind_to >= self.training.steps:
            raise ValueError(
                f"pruning.rewind_to: expected a step below training.steps={self.training.steps}, "
                f"got {self.pruning.rewind_to}"
            )
        if "shuffle" in self.controls.kinds and self.controls.rounds and self.pruning.rewind != "weights":
            raise ValueError("controls.kinds: shuffle needs pruning.rewind: weights")
        if self.stream is not None and self.backend not in ("auto", "stream"):
            raise ValueError(f"backend: expected auto or stream, since the recipe has stream, got {self.backend!r}")
        if self.training.optimizer.name == "muon" and self.backend != "dense":
            raise ValueError(
                "training.optimizer 'muon' combines elements of a weight, which short flat values do not allow: "
                f"expected backend: dense, got {self.backend}"
            )
        self._check_at_init()
        strong = make_strong(self.algorithm.name, self.algorithm.options)
        if strong is not None and self.controls.rounds:
            raise ValueError(f"controls: algorithm {self.algorithm.name!r} trains no weights that a control could take")
        dynamic = make_dynamic(self.algorithm.name, self.algorithm.options, self.training.steps)
        if dynamic is None and strong is None:
            make_pruning(self.pruning)
        elif self.pruning.model_copy(update={"param_filter": None}) != _ONE_ROUND:
            name = self.algorithm.name
            raise ValueError(f"pruning: algorithm {name!r} prunes by its own options; only param_filter goes here")
        return self

    def _check_at_init(self) -> None:
        spec = self.pruning
        if first_round(self.algorithm.name) and (spec.rounds, spec.rewind, spec.rewind_to) != (1, "weights", 0):
            raise ValueError(
                f"algorithm {self.algorithm.name!r} prunes once, no weight being trained before it: expected "
                "pruning.rounds: 1 and no rewind, got "
                f"rounds={spec.rounds}, rewind={spec.rewind}, rewind_to={spec.rewind_to}"
            )


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or of a name that `available_recipes` lists, with `key.key=value` laid over it.

    Values are YAML. `ValueError` in one line: the key, what was expected, what was got.
    """
    path = Path(source)
    if not path.is_file():
        path = available_recipes().get(source, path)
    if not path.is_file():
        names = ", ".join(available_recipes())
        raise ValueError(f"no recipe {source!r}: expected a YAML file or one of: {names}")
    return read_recipe(path, overrides)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file. `ValueError` with the path and the first thing that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a recipe in UTF-8, cannot read it: {error}") from None
    content = _yaml(text, str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of keys such as model, data and training")
    for override in overrides:
        _override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {_first_line(error)}") from None


def available_recipes() -> dict[str, Path]:
    """Name → file of the recipes that come with sparseflow."""
    spec = importlib.util.find_spec("sparseflow_launchers")
    if spec is None or spec.origin is None:
        return {}
    package = Path(spec.origin).parent
    # Installed, they lie in the package; in a checkout, beside it.
    folders = [package / "recipes", package.parent / "recipes"]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def make_trainer(
    recipe: Recipe,
    seed: int,
    listener: Listener | None = None,
    engine: EngineName = "ddp",
    folder: Path | None = None,
) -> Trainer:
    """The trainer of a recipe for one seed. `ValueError` or `TypeError` for names and options that do not exist.

    folder: the run's, for a recipe that streams; without one, it streams from memory.
    """
    spec = recipe.training
    optimizer, schedule = _optimizer(spec.optimizer), _schedule(spec)
    task = data.load(recipe.data.name, recipe.data.options)
    return Trainer(
        make_model(recipe, task),
        task,
        optimizer=optimizer,
        steps=spec.steps,
        batch_size=spec.batch_size,
        seed=seed,
        schedule=schedule,
        weight_decay=spec.weight_decay,
        clip=spec.clip,
        accumulate=spec.accumulate,
        evaluate_every=spec.evaluate_every,
        engine=engine,
        stream=None if recipe.stream is None else recipe.stream.streaming(folder, seed),
        listener=listener,
        groups=muon_groups if spec.optimizer.name == "muon" else None,
    )


def make_model(recipe: Recipe, task: data.Data) -> Callable[[], nn.Module]:
    """What makes the recipe's model, for that data."""
    options = dict(recipe.model.options)
    if recipe.model.name == "gpt":
        # The corpus decides how many characters there are.
        options.setdefault("vocabulary", task.classes)
    return lambda: models.build(recipe.model.name, options)


def _optimizer(spec: OptimizerSpec) -> Callable[..., torch.optim.Optimizer]:
    made = choose("optimizer", spec.name, _OPTIMIZERS)
    make = cast(Callable[..., torch.optim.Optimizer], functools.partial(made, lr=spec.lr, **spec.options))
    try:
        # Only the names: making the first optimizer of a process imports torch's compiler, which takes seconds.
        inspect.signature(made).bind([], lr=spec.lr, **spec.options)
    except TypeError as error:
        known = ", ".join(name for name in inspect.signature(made).parameters if name not in ("params", "lr"))
        raise ValueError(f"training.optimizer {spec.name!r}: {error}; its options are: {known}") from None

    def make_or_refuse(parameters: object) -> torch.optim.Optimizer:
        try:
            return make(parameters)
        except (TypeError, ValueError) as error:
            raise ValueError(f"training.optimizer {spec.name!r} refuses its options {spec.options}: {error}") from error

    return make_or_refuse


def _schedule(spec: TrainingSpec) -> Schedule:
    options = dict(spec.schedule.options)
    if spec.schedule.name == "cosine":
        options.setdefault("steps", spec.steps)
    choices: dict[str, Callable[..., object]] = {
        "constant": schedules.constant,
        "cosine": schedules.cosine,
        "multistep": schedules.multistep,
    }
    made = call(choose("schedule", spec.schedule.name, choices), options, spec.schedule.name)
    if not callable(made):
        raise TypeError(f"schedule {spec.schedule.name!r} must return a function of the step, got {made!r}")
    return cast(Schedule, made)


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"--set: expected key=value such as training.steps=1000, got {override!r}")
    *parents, last = key.split(".")
    place: dict[str, Any] = content
    for parent in parents:
        inner: Any = place.setdefault(parent, {})
        if isinstance(inner, str):
            # `model: lenet_300_100` is short for a name without options.
            inner = place[parent] = {"name": inner}
        if not isinstance(inner, dict):
            raise ValueError(f"--set {override!r}: {parent} holds {inner!r}, which has no keys")
        place = inner
    place[last] = _yaml(text, f"--set {override!r}")


def _yaml(text: str, origin: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{origin}: not YAML: {' '.join(str(error).split())}") from None


def _first_line(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _keys_at(first["loc"][:-1]), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_keys_at(first['loc'][:-1]))}"
        return f"unknown key {key!r}; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{key}: expected this key, got none"
    return f"{key}: {message}, got {first['input']!r}" if key else message


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)
