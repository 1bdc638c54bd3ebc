"""Criteria: what a weight is worth. One function each, from weights to scores; the lowest are pruned."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow.masks.arguments import choose
from sparseflow.ranks import Ranks


@dataclass(frozen=True)
class Scores:
    """One floating-point score a weight, by parameter name.

    absolute: the score is |tensor|. Magnitude then needs no copy of the weights.
    """

    tensors: Mapping[str, Tensor]
    absolute: bool


Criterion = Callable[[Mapping[str, Tensor], int], Scores]
"""From the weights by parameter name, and a seed, to their scores."""


def magnitude(weights: Mapping[str, Tensor], seed: int = 0) -> Scores:
    """Returns |w|. The tensors are the weights themselves; `seed` is not used."""
    return Scores({name: weight.detach() for name, weight in weights.items()}, absolute=True)


def random(weights: Mapping[str, Tensor], seed: int = 0) -> Scores:
    """Returns uniform scores that depend on the seed and the parameter's name and shape alone.

    Drawn on the CPU in float64 (8 bytes a weight), so that every device gets the same scores, practically
    without ties.
    """
    return Scores(
        {
            name: torch.rand(weight.shape, generator=parameter_generator(seed, name), dtype=torch.float64).to(
                weight.device
            )
            for name, weight in weights.items()
        },
        absolute=False,
    )


def averaged(scores: Scores, ranks: Ranks) -> Scores:
    """Returns the mean of all ranks' scores, in the dtype that they have; alone, the scores.

    On the wire they are float32; float64, whose range float32 lacks, stays float64.
    """
    if ranks.world == 1:
        return scores
    means = {
        name: (ranks.sum(tensor.detach().cpu().to(_on_the_wire(tensor), copy=True)) / ranks.world).to(tensor)
        for name, tensor in scores.tensors.items()
    }
    return Scores(means, scores.absolute)


def get(criterion: str | Criterion) -> Criterion:
    """Returns the criterion of that name, or `criterion` itself where it is a function."""
    if callable(criterion):
        return criterion
    if not isinstance(criterion, str):
        raise TypeError(f"criterion: expected a name or a function, got {type(criterion).__name__}")
    return choose("criterion", criterion, {"magnitude": magnitude, "random": random})


def parameter_generator(seed: int, name: str) -> torch.Generator:
    """Returns a CPU generator seeded by (seed, name): a parameter's draws do not depend on the others."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _on_the_wire(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
