"""Does the recipe name what is there, and how large is its network?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparseflow import data
from sparseflow.doctor.finding import Finding, ok, warning, wrong
from sparseflow.recipes import Recipe, make_model
from sparseflow.training.pruning import prunable_weights


@dataclass(frozen=True)
class Network:
    """Numbers of parameters: all, and those that can be pruned."""

    parameters: int
    prunable: int


def check_network(recipe: Recipe) -> tuple[list[Finding], Network | None]:
    """Data and model of a recipe; the model is laid out without memory for its weights."""
    absent = _absent(recipe)
    if absent is not None:
        return [absent], None
    try:
        task = data.load(recipe.data.name, recipe.data.options)
    except (ValueError, TypeError) as error:
        return [wrong("data", error)], None
    found = [ok("data", f"{recipe.data.name}: {len(task.train):,} examples to train on")]
    try:
        network = count(recipe, task)
    except (ValueError, TypeError) as error:
        return [*found, wrong("model", error)], None
    except (RuntimeError, NotImplementedError) as error:
        text = f"{recipe.model.name!r} cannot be laid out without weights, so that its size is not known: {error}"
        return [*found, warning("model", " ".join(text.split()))], None
    text = f"{recipe.model.name}: {network.parameters:,} parameters, {network.prunable:,} of them prunable"
    return [*found, ok("model", text)], network


def count(recipe: Recipe, task: data.Data) -> Network:
    """The numbers of parameters of a recipe's model."""
    with torch.device("meta"):
        model = make_model(recipe, task)()
    weights = prunable_weights(model, recipe.pruning.param_filter)
    return Network(
        sum(parameter.numel() for parameter in model.parameters()), sum(weight.numel() for weight in weights.values())
    )


def _absent(recipe: Recipe) -> Finding | None:
    place = data.available().get(recipe.data.name, "")
    if "path" in recipe.data.options or not place.startswith("not here"):
        return None
    return warning(
        "data",
        f"{recipe.data.name} is {place} on every node before the launch, which may have no way out to fetch it; the "
        "model, whose size may depend on it, was not looked at",
    )
