"""The units of a streamed model: one module with parameters of its own each, which stream together."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparseflow.hardware.names import unwrapped

# Every weight begins on a line of the cache, in float32.
_ALIGNMENT = 16


@dataclass(frozen=True)
class Weight:
    """One attribute of a module. name: the parameter's first name in the model, which tied weights share."""

    key: str
    name: str
    shape: tuple[int, ...]
    offset: int

    def within(self, memory: Tensor) -> Tensor:
        """Its part of a buffer that holds its unit."""
        return memory[self.offset : self.offset + math.prod(self.shape)].view(self.shape)


@dataclass(frozen=True, eq=False)
class Unit:
    """name: the module's path in the model."""

    name: str
    module: nn.Module
    weights: Mapping[str, Weight]
    numel: int

    def at(self, offset: int) -> Weight:
        """The weight that a place in a buffer belongs to."""
        return max((w for w in self.weights.values() if w.offset <= offset), key=lambda weight: weight.offset)

    @property
    def nbytes(self) -> int:
        """In a buffer."""
        return 4 * self.numel


def units_of(model: nn.Module) -> list[Unit]:
    """One for each module with parameters of its own, in the model's order.

    `ValueError` for a model without parameters and for parameters that are not float32.
    """
    names = first_names(model)
    found = [
        _unit(unwrapped(path), module, names)
        for path, module in model.named_modules()
        if any(parameter is not None for parameter in module._parameters.values())
    ]
    if not found:
        raise ValueError("expected a model with parameters, got one that has none")
    return found


def first_names(model: nn.Module) -> dict[int, str]:
    """id of each parameter → its first name in the model."""
    return {id(parameter): unwrapped(name) for name, parameter in model.named_parameters()}


def every_name(model: nn.Module) -> dict[str, str]:
    """Each name of each parameter, tied ones included → its first name."""
    first = first_names(model)
    return {unwrapped(name): first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}


def initial_weights(units: list[Unit], initialise: Callable[[nn.Module], None] | None) -> Iterator[tuple[str, Tensor]]:
    """Each parameter once, by name. A unit on the meta device is made real, initialised, and let go again.

    `initialise` does that for one module; None: its own `reset_parameters`. `ValueError` where it has none.
    """
    given: set[str] = set()
    for unit in units:
        parameters = {key: unit.module._parameters[key] for key in unit.weights}
        made = any(parameter is not None and parameter.is_meta for parameter in parameters.values())
        if made:
            _make(unit, initialise)
        for key, weight in unit.weights.items():
            parameter = unit.module._parameters[key]
            if weight.name not in given and parameter is not None:
                given.add(weight.name)
                yield weight.name, parameter.detach()
        if made:
            unit.module._parameters.update(parameters)


def check_mask(name: str, mask: Tensor, shapes: Mapping[str, tuple[int, ...]], aliases: Mapping[str, str]) -> None:
    """`ValueError` for a mask of another name, shape or dtype. aliases: other names of tied parameters."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask {name!r}: expected a bool tensor (True = kept), got {type(mask).__name__}")
    if name not in shapes:
        tied = aliases.get(name)
        near = difflib.get_close_matches(name, shapes, n=1)
        hint = f"it is tied to {tied!r}; give that one the mask" if tied else f"nearest: {near}" if near else ""
        raise ValueError(f"mask {name!r} names no parameter of the model; {hint}")
    if tuple(mask.shape) != shapes[name] or mask.dtype != torch.bool:
        raise ValueError(
            f"mask {name!r}: expected a bool tensor (True = kept) of shape {shapes[name]}, got {mask.dtype} of shape "
            f"{tuple(mask.shape)}"
        )


def _make(unit: Unit, initialise: Callable[[nn.Module], None] | None) -> None:
    reset = getattr(unit.module, "reset_parameters", None)
    if initialise is None and reset is None:
        raise ValueError(
            f"{unit.name!r} is on the meta device, and {type(unit.module).__name__} has no reset_parameters(); pass "
            "initialise=, a function that fills the parameters of the module that it is given"
        )
    unit.module.to_empty(device="cpu", recurse=False)
    with torch.no_grad():
        if initialise is not None:
            initialise(unit.module)
        elif reset is not None:
            reset()


def _unit(path: str, module: nn.Module, names: Mapping[int, str]) -> Unit:
    weights, offset = dict[str, Weight](), 0
    for key, parameter in module._parameters.items():
        if parameter is None:
            continue
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"{names[id(parameter)]!r}: expected torch.float32, got {parameter.dtype}; a store keeps float32, and "
                "format= says in what the products are computed"
            )
        weights[key] = Weight(key, names[id(parameter)], tuple(parameter.shape), offset)
        offset += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
    return Unit(path, module, weights, offset)
