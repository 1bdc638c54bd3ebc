"""The verbs on a model: which of its weights are prunable, and their masks after a pruning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from sparseflow.hardware.model import current_masks, dense_weights
from sparseflow.masks.allocation import Allocation
from sparseflow.masks.criteria import Criterion
from sparseflow.masks.floors import Floor
from sparseflow.masks.masks import Masks
from sparseflow.masks.patterns import Pattern, Unstructured
from sparseflow.masks.select import prune_tensors

# A name glob, several of them, or a function of the dense name.
ParamFilter = str | Sequence[str] | Callable[[str], bool]


def prune(
    model: nn.Module,
    density: float | None = None,
    *,
    rate: float | None = None,
    masks: Mapping[str, Tensor] | None = None,
    criterion: str | Criterion = "magnitude",
    pattern: Pattern = Unstructured(),
    allocation: Allocation = "global",
    rates: Mapping[str, float] | None = None,
    floor: Floor | None = None,
    param_filter: ParamFilter | None = None,
    seed: int = 0,
) -> Masks:
    """Masks of the weights to keep, chosen by the model's present weights. The model is not changed.

    `density` is the fraction of all prunable weights to keep, `rate` the fraction of the survivors to prune; give
    one. `masks` are the survivors so far: by default those of the sparse layers, else all weights. A pruned weight
    never returns. Prunable are the weights of Linear, Conv2d and transformers' Conv1D, of which `param_filter`
    keeps those whose dense name matches. The rest as in `masks.prune_tensors`, which also lists the errors.
    """
    weights = prunable_weights(model, param_filter)
    survivors = dict(current_masks(model)) if masks is None else dict(masks)
    if masks is None:
        # A model can be sparse in part; what is dense has all its weights.
        survivors = {name: mask for name, mask in survivors.items() if name in weights}
        survivors = {**Masks.ones({n: w.shape for n, w in weights.items()}), **survivors}
    return prune_tensors(
        weights,
        survivors,
        density=density,
        rate=rate,
        criterion=criterion,
        pattern=pattern,
        allocation=allocation,
        rates=rates,
        floor=floor,
        seed=seed,
    )


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
