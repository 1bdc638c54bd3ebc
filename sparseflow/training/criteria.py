"""Criteria by name that look at more than the present weights: at data, a loss, or where training started."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sparseflow.masks import mask_criteria
from sparseflow.masks.allocation import Allocation
from sparseflow.masks.arguments import choose
from sparseflow.masks.criteria import Criterion, Scores
from sparseflow.training.probe import Batch, Loss, on_device
from sparseflow.training.sensitivity import grasp, snip
from sparseflow.training.synflow import ITERATIONS, synflow


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at beside the weights; None: not given.

    data: batches (inputs, targets). loss: from the output and targets to a mean. start: dense name → tensor, the state
    that training started from.
    """

    data: Iterable[Batch] | None = None
    loss: Loss | None = None
    start: Mapping[str, Tensor] | None = None


NO_EVIDENCE = Evidence()


@dataclass(frozen=True)
class Bound:
    """A criterion by name with what it needs; `iterations` prunings make one."""

    name: str
    score: Criterion
    iterations: int = 1

    def __call__(self, weights: Mapping[str, Tensor], seed: int = 0) -> Scores:
        return self.score(weights, seed)

    def __str__(self) -> str:
        return self.name


def names() -> list[str]:
    """The criteria that a recipe, or `sf.prune`, takes by name."""
    return [*_PLAIN, *_METHODS]


def check(criterion: str | Criterion, evidence: Evidence, allocation: Allocation) -> None:
    """ValueError for an unknown name, and for a criterion that is not given what it needs or that does not fit."""
    if not isinstance(criterion, str):
        return
    choose("criterion", criterion, dict.fromkeys(names()))
    if criterion in _METHODS:
        _check_needs(criterion, evidence)
        if _METHODS[criterion].iterations > 1 and allocation == "layerwise":
            raise ValueError(f"criterion {criterion!r} prunes in many steps, by no rates; choose another allocation")


def bind(
    criterion: str | Criterion, model: nn.Module, evidence: Evidence, allocation: Allocation, device: torch.device
) -> str | Criterion:
    """The criterion, and where it is one of ours that needs more than weights, the one of this model and evidence."""
    check(criterion, evidence, allocation)
    if not isinstance(criterion, str) or criterion in _PLAIN:
        return criterion
    method = _METHODS[criterion]
    batches = on_device(evidence.data or [], device)
    if "data" in method.needs and not batches:
        raise ValueError(f"criterion {criterion!r}: expected at least one batch in data, got none")
    return Bound(criterion, method.make(model, batches, evidence), method.iterations)


@dataclass(frozen=True)
class _Method:
    needs: tuple[str, ...]
    make: Callable[[nn.Module, list[Batch], Evidence], Criterion]
    iterations: int = 1


def _check_needs(name: str, evidence: Evidence) -> None:
    given = {"data": evidence.data, "loss": evidence.loss, "start": evidence.start}
    missing = [need for need in _METHODS[name].needs if given[need] is None]
    if missing:
        raise ValueError(
            f"criterion {name!r} needs {' and '.join(missing)}, got none; pass "
            + ", ".join(f"{need}={_HOW[need]}" for need in missing)
        )


def _loss(evidence: Evidence) -> Loss:
    assert evidence.loss is not None
    return evidence.loss


def _from_start(
    make: Callable[[Mapping[str, Tensor]], Criterion], model: nn.Module, data: list[Batch], evidence: Evidence
) -> Criterion:
    assert evidence.start is not None
    return make(evidence.start)


_PLAIN = ("magnitude", "random")
_HOW = {
    "data": "[(inputs, targets), …]",
    "loss": "torch.nn.functional.cross_entropy or another mean",
    "start": "the state dict from before training",
}
_METHODS = {
    "snip": _Method(("data", "loss"), lambda model, data, given: snip(model, data, _loss(given))),
    "grasp": _Method(("data", "loss"), lambda model, data, given: grasp(model, data, _loss(given))),
    "synflow": _Method(("data",), lambda model, data, given: synflow(model, data[0][0]), ITERATIONS),
    **{
        name: _Method(("start",), partial(_from_start, criterion))
        for name, criterion in {
            "movement": mask_criteria.movement,
            "magnitude_increase": mask_criteria.magnitude_increase,
            "large_init_large_final": mask_criteria.large_init_large_final,
            "large_final_same_sign": mask_criteria.large_final_same_sign,
        }.items()
    },
}
