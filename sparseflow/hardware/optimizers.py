"""Optimizers beside sparse layers: what moves when a parameter is replaced, and what may not be used."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

# They combine elements of one weight, so that short flat values change their meaning and pruned weights move.
MIXING = frozenset({"Adafactor", "LBFGS", "LAMB", "Lamb", "LARS", "Muon", "Shampoo", "SOAP"})


def mixes_elements(optimizer: torch.optim.Optimizer) -> bool:
    """Whether one element's update depends on other elements of its weight, as in Muon or Adafactor."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return any(kind.__name__ in MIXING for kind in type(inner).__mro__)


def rebind(
    optimizer: torch.optim.Optimizer,
    old: nn.Parameter,
    new: nn.Parameter,
    convert: Callable[[Tensor], Tensor],
) -> bool:
    """Puts `new` in the place of `old`: same group, state of its shape converted, scalars copied.

    Returns whether the optimizer held `old` at all. With `old is new` only the state is converted, in place.
    """
    for group in optimizer.param_groups:
        for position, parameter in enumerate(group["params"]):
            if parameter is old:
                group["params"][position] = new
                _move_state(optimizer, old, new, convert)
                return True
    return False


def _move_state(
    optimizer: torch.optim.Optimizer,
    old: nn.Parameter,
    new: nn.Parameter,
    convert: Callable[[Tensor], Tensor],
) -> None:
    if old not in optimizer.state:
        return
    state: dict[str, Any] = optimizer.state.pop(old)
    moved = {}
    for key, value in state.items():
        like_parameter = isinstance(value, Tensor) and value.dim() > 0 and value.shape == old.shape
        if isinstance(value, Tensor) and value.numel() > 1 and not like_parameter and old.shape != new.shape:
            raise ValueError(
                f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for a weight of shape "
                f"{tuple(old.shape)}, which cannot follow it to {tuple(new.shape)}; build the optimizer after this call"
            )
        moved[key] = convert(value) if like_parameter else value
    optimizer.state[new] = moved


def holds_any(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Whether the optimizer holds at least one of the model's parameters."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return any(id(parameter) in held for parameter in model.parameters())


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """`ValueError` where the optimizer belongs to another model."""
    if not holds_any(optimizer, model):
        raise ValueError(
            "expected an optimizer of this model, got one that holds none of its parameters; build it from "
            "model.parameters() or sf.param_groups(model, weight_decay)"
        )


def check_rebindable(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """`ValueError` where the optimizer belongs to another model, or cannot be given other parameters."""
    check_optimizer(optimizer, model)
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("LBFGS keeps a list of the parameters that cannot be changed; build it after this call")


class MaskedValues(Protocol):
    """What the watch over optimizers must know of a sparse layer."""

    values: nn.Parameter
    backend: str

    def remask_values_(self) -> None: ...


# Optimizers do not know layers, so their steps are watched: by torch's global hooks, set when the first layer is made.
_LAYERS: WeakSet[MaskedValues] = WeakSet()


def watch(layer: MaskedValues) -> None:
    """Has every optimizer's step look out for this layer, as `_before_step` and `_after_step` say."""
    _LAYERS.add(layer)
    _install_hooks()


def layers_of(values: nn.Parameter) -> list[MaskedValues]:
    """All living layers whose values are this very Parameter: more than one where weights are tied."""
    return [layer for layer in _LAYERS if layer.values is values]


def mark_replaced(parameter: nn.Parameter) -> None:
    """Notes that no model reads this parameter any more: an optimizer that still steps it gets an error."""
    parameter._sparseflow_replaced = True  # type: ignore[attr-defined]
    _install_hooks()


def mark_remasked(parameter: nn.Parameter) -> None:
    """Notes that the mask changed under this parameter: an optimizer with state from before gets an error."""
    parameter._sparseflow_remasked = True  # type: ignore[attr-defined]
    _install_hooks()


@functools.cache
def _install_hooks() -> None:
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if "_sparseflow_replaced" in parameter.__dict__:
                raise ValueError(
                    "this optimizer holds a parameter that sparsify, remask or densify has replaced, so it would "
                    "train nothing there; pass optimizer= to that call, or build the optimizer after it"
                )
            if "_sparseflow_remasked" in parameter.__dict__:
                _check_state_is_new(optimizer, parameter)
    if mixes_elements(optimizer):
        for layer in _held_by(optimizer):
            refuse_mixing(optimizer, layer.backend)


def _check_state_is_new(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    if optimizer.state.get(parameter):
        raise ValueError(
            "this optimizer's state belongs to the mask before remask, and would move pruned weights; pass optimizer= "
            "to remask, or build the optimizer after it"
        )
    del parameter._sparseflow_remasked  # type: ignore[attr-defined]


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if mixes_elements(optimizer):
        for layer in _held_by(optimizer):
            layer.remask_values_()


def _held_by(optimizer: torch.optim.Optimizer) -> list[MaskedValues]:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [layer for layer in _LAYERS if id(layer.values) in held]


def refuse_mixing(optimizer: torch.optim.Optimizer, backend: str) -> None:
    """`ValueError` unless the backend keeps weights as matrices, which such an optimizer needs."""
    if backend != "dense":
        raise ValueError(
            f"{type(optimizer).__name__} combines elements of a weight, which the flat values of backend "
            f"{backend!r} do not allow; use backend='dense' for it"
        )
