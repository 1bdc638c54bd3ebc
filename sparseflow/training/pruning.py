"""The verbs on a model: which of its weights are prunable, their masks after a pruning, and after several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal, Protocol

from torch import Tensor, nn

from sparseflow.hardware.model import current_masks, dense_weights
from sparseflow.masks import schedules
from sparseflow.masks.allocation import Allocation, check_amounts
from sparseflow.masks.criteria import Criterion
from sparseflow.masks.dynamic import Dynamic
from sparseflow.masks.floors import Floor
from sparseflow.masks.importance import Importance
from sparseflow.masks.masks import Masks
from sparseflow.masks.patterns import Pattern, Unstructured
from sparseflow.masks.select import prune_tensors
from sparseflow.ranks import current
from sparseflow.training import criteria
from sparseflow.training.criteria import NO_EVIDENCE, Bound, Evidence, bind
from sparseflow.training.orientation import turned
from sparseflow.training.probe import Batch, Loss
from sparseflow.training.repeated import prune_repeatedly
from sparseflow.training.round import masked

# A name glob, several of them, or a function of the dense name.
ParamFilter = str | Sequence[str] | Callable[[str], bool]


def prune(
    model: nn.Module,
    density: float | None = None,
    *,
    rate: float | None = None,
    masks: Mapping[str, Tensor] | None = None,
    criterion: str | Criterion = "magnitude",
    importance: Importance | None = None,
    pattern: Pattern = Unstructured(),
    allocation: Allocation = "global",
    rates: Mapping[str, float] | None = None,
    floor: Floor | None = None,
    param_filter: ParamFilter | None = None,
    seed: int = 0,
    data: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Masks of the weights to keep, chosen by the model's present weights. The model is not changed.

    `density` is the fraction of all prunable weights to keep, `rate` the fraction of the survivors to prune; give
    one. `masks` are the survivors so far: by default those of the sparse layers, else all weights. A pruned weight
    never returns. Prunable are the weights of Linear, Conv2d and transformers' Conv1D, of which `param_filter`
    keeps those whose dense name matches.

    Some criteria need more: "snip" and "grasp" `data`, batches (inputs, targets), all of which they use, and `loss`,
    which takes output and targets to a mean; "synflow" a batch of `data` for its shape; "movement",
    "magnitude_increase", "large_init_large_final" and "large_final_same_sign" `start`, the state dict from before
    training. "synflow" prunes 100 times, by the same fraction of the survivors each.

    In a launch of several processes, where each has the same weights, all call it and get the same masks; `data` is
    each one's own. The rest as in `masks.prune_tensors`, which also lists the errors.
    """
    weights = prunable_weights(model, param_filter)
    survivors = dict(current_masks(model)) if masks is None else dict(masks)
    if masks is None:
        # A model can be sparse in part; what is dense has all its weights.
        survivors = {name: mask for name, mask in survivors.items() if name in weights}
        survivors = {**Masks.ones({n: w.shape for n, w in weights.items()}), **survivors}
    device = next(iter(weights.values())).device
    chosen = bind(criterion, model, Evidence(data, loss, start), allocation, device)
    pattern = turned(pattern, model)
    select = partial(
        prune_tensors,
        criterion=chosen,
        importance=importance,
        pattern=pattern,
        allocation=allocation,
        floor=floor,
        seed=seed,
        ranks=current(),
    )
    if not isinstance(chosen, Bound):
        return select(weights, survivors, density=density, rate=rate, rates=rates)
    Masks(survivors).check({name: weight.shape for name, weight in weights.items()})
    survivors = dict(Masks(survivors).to(device))
    if chosen.iterations == 1:
        return select(masked(weights, survivors), survivors, density=density, rate=rate, rates=rates)
    check_amounts(allocation, density, rate, rates)
    return prune_repeatedly(
        select, weights, survivors, iterations=chosen.iterations, pattern=pattern, density=density, rate=rate
    )


class Prunes(Protocol):
    """What decides the masks of each round of a search."""

    @property
    def rounds(self) -> int:
        """How many prunings there are."""
        ...

    @property
    def param_filter(self) -> ParamFilter | None:
        """Which weights may be pruned."""
        ...

    @property
    def may_cut(self) -> bool:
        """Whether masks may leave no path from the input to the output."""
        ...

    def check(self, model: nn.Module, masks: Masks, evidence: Evidence = NO_EVIDENCE) -> None:
        """Says what does not fit the model, before the first training."""

    def __call__(self, model: nn.Module, masks: Masks, number: int, evidence: Evidence = NO_EVIDENCE) -> Masks:
        """The masks after the pruning of that number, 1 to `rounds`."""
        ...

    def planned(self, model: nn.Module, masks: Masks) -> Masks:
        """The masks that backends are chosen for, where a round begins with those given and `model` is dense."""
        ...


@dataclass(frozen=True)
class Pruning:
    """How masks follow from masks: prune's names, and how much by which round."""

    rounds: int
    rate: float | None = None
    density: float | None = None
    schedule: Literal["constant", "cubic"] = "constant"
    criterion: str | Criterion = "magnitude"
    importance: Importance | None = None
    pattern: Pattern = Unstructured()
    allocation: Allocation = "global"
    rates: Mapping[str, float] | None = None
    floor: Floor | None = None
    param_filter: ParamFilter | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds: expected 0 prunings or more, got {self.rounds}")
        if self.rate is not None and self.density is not None:
            raise ValueError("give rate (pruned in each round) or density (kept after the last round), not both")
        if self.rate is None and self.density is None and self.rates is None:
            raise ValueError("give rate (pruned in each round) or density (kept after the last round)")
        if self.schedule != "constant" and self.density is None:
            raise ValueError(f"schedule={self.schedule!r} needs density, the fraction to keep after the last round")
        if self.density is not None:
            schedules.get(self.schedule)(self.density)

    @property
    def may_cut(self) -> bool:
        """Whether a floor of 0 allows masks that leave nothing of the network."""
        floors = self.floor.values() if isinstance(self.floor, Mapping) else [self.floor]
        return any(floor == 0 for floor in floors)

    def check(self, model: nn.Module, masks: Masks, evidence: Evidence = NO_EVIDENCE) -> None:
        """Says what does not fit the model, before the first training and not after it: by the first pruning."""
        if not self.rounds:
            return
        criteria.check(self.criterion, evidence, self.allocation)
        # Those of ours look at data, which takes time, or at what training has moved, which is nothing yet.
        plain = "magnitude" if isinstance(self.criterion, str) else self.criterion
        # Present weights are no reason to complain of a layer that would be empty.
        replace(self, criterion=plain, floor=0 if self.floor is None else self.floor)(model, masks, 1, evidence)

    def __call__(self, model: nn.Module, masks: Masks, number: int, evidence: Evidence = NO_EVIDENCE) -> Masks:
        """The masks after the pruning of that number, 1 to `rounds`, from trained weights."""
        density = None
        if self.density is not None:
            density = schedules.get(self.schedule)(self.density)(number / self.rounds)
        return prune(
            model,
            density,
            rate=self.rate,
            masks=masks,
            criterion=self.criterion,
            importance=self.importance,
            pattern=self.pattern,
            allocation=self.allocation,
            rates=self.rates,
            floor=self.floor,
            param_filter=self.param_filter,
            seed=self.seed,
            data=evidence.data,
            loss=evidence.loss,
            start=evidence.start,
        )

    def planned(self, model: nn.Module, masks: Masks) -> Masks:
        """The masks themselves, which stay."""
        return masks


@dataclass(frozen=True)
class Start:
    """One pruning: the masks with which a method that changes them in training begins."""

    method: Dynamic
    param_filter: ParamFilter | None = None
    seed: int = 0
    rounds: int = 1
    # What is cut at the start may grow together.
    may_cut: bool = True

    def check(self, model: nn.Module, masks: Masks, evidence: Evidence = NO_EVIDENCE) -> None:
        """Says what does not fit the model, before the first training."""
        self(model, masks, 1)

    def __call__(self, model: nn.Module, masks: Masks, number: int, evidence: Evidence = NO_EVIDENCE) -> Masks:
        """The masks to begin with."""
        return self.method.start(prunable_weights(model, self.param_filter), self.seed)

    def planned(self, model: nn.Module, masks: Masks) -> Masks:
        """Masks of the method's density where it begins denser, so that its dense beginning chooses nothing."""
        # Where densities are given for layers, each rounds by itself.
        if masks.nnz <= self.method.density * masks.total + len(masks):
            return masks
        return prune_tensors(prunable_weights(model, self.param_filter), masks, density=self.method.density, floor=1)


def prunable_weights(model: nn.Module, param_filter: ParamFilter | None = None) -> dict[str, Tensor]:
    """Dense name → weight of the layers that can be pruned; `ValueError` where the filter or the model leaves none."""
    weights = dense_weights(model)
    if not weights:
        raise ValueError(
            "expected a model with weights to prune (Linear, Conv2d or transformers' Conv1D), found none in "
            f"{type(model).__name__}"
        )
    if param_filter is None:
        return weights
    chosen = {name: weight for name, weight in weights.items() if _matches(name, param_filter)}
    if not chosen:
        raise ValueError(f"param_filter {param_filter!r} matches no prunable weight; they are: {', '.join(weights)}")
    return chosen


def _matches(name: str, param_filter: ParamFilter) -> bool:
    if callable(param_filter):
        return param_filter(name)
    globs = [param_filter] if isinstance(param_filter, str) else param_filter
    return any(fnmatchcase(name, glob) for glob in globs)
