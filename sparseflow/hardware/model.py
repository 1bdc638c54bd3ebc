"""A whole model seen through its dense names: its weights, masks, state and optimizer groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.names import unwrapped
from sparseflow.hardware.survey import survey


def dense_weights(model: nn.Module) -> dict[str, Tensor]:
    """Dense name → weight of every prunable layer, in the model's order; a copy only where the layer is sparse."""
    return {name: _dense_weight(site.module) for name, site in survey(model).sites.items()}


def _dense_weight(module: nn.Module) -> Tensor:
    if isinstance(module, SparseLayer):
        return module.unpack(module.values.detach())
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def current_masks(model: nn.Module) -> dict[str, Tensor]:
    """Dense name → mask of every sparse layer."""
    sites = survey(model).sites
    return {name: site.module.mask for name, site in sites.items() if isinstance(site.module, SparseLayer)}


def masks_by_every_name(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks under all names that `dense_state` has for a masked weight: a shared or tied one has several."""
    sharing: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module._parameters.items():
            key = "weight" if key == "values" and isinstance(module, SparseLayer) else key
            sharing.setdefault(id(parameter), []).append(unwrapped(f"{path}.{key}" if path else key))
    return {name: masks[first] for names in sharing.values() for first in names if first in masks for name in names}


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """Dense name → sparse layer, the first of those that share a weight."""
    sites = survey(model).sites
    return {name: site.module for name, site in sites.items() if isinstance(site.module, SparseLayer)}


def dense_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that the dense model would have: dense names, zeros at pruned places, detached copies."""
    state: dict[str, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        sparse = isinstance(module, SparseLayer)
        if isinstance(module, SparseLayer):
            state[unwrapped(f"{prefix}weight")] = module.unpack(module.values.detach())
        for key, parameter in module._parameters.items():
            if parameter is not None and not (key == "values" and sparse):
                state[unwrapped(f"{prefix}{key}")] = parameter.detach().clone()
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                state[unwrapped(f"{prefix}{key}")] = buffer.detach().clone()
    return state


def load_dense_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads what `dense_state` gave into a dense or sparse model, in place; masked places keep their mask.

    `ValueError` that names missing and unexpected tensors or wrong shapes.
    """
    keys = _state_keys(model)
    try:
        model.load_state_dict({keys.get(name, name): tensor for name, tensor in state.items()})
    except RuntimeError as error:
        raise ValueError(f"this state does not fit the model: {' '.join(str(error).split())}") from None


def _state_keys(model: nn.Module) -> dict[str, str]:
    """Dense name → the key under which `model.load_state_dict` takes that dense tensor."""
    sparse = {
        unwrapped(f"{path}.weight" if path else "weight")
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, SparseLayer)
    }
    keys = {}
    for key in model.state_dict():
        # A sparse layer writes weight_values and weight_mask where it also takes a dense weight.
        weight = key.removesuffix("_values").removesuffix("_mask")
        name = unwrapped(weight)
        if name in sparse:
            keys[name] = weight
        else:
            keys[unwrapped(key)] = key
    return keys


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two optimizer groups by *logical* shape: weights of two or more dimensions decay, the rest does not.

    The values of a sparse layer are flat but stand for a matrix or a kernel, so they decay.
    """
    values = {id(module.values) for module in model.modules() if isinstance(module, SparseLayer)}
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in model.parameters():
        matrix = parameter.dim() >= 2 or id(parameter) in values
        (decay if matrix else rest).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def logical_numel(model: nn.Module) -> int:
    """Number of parameters of the dense model."""
    hidden = {id(m.values): torch.Size(m.weight_shape).numel() for m in model.modules() if isinstance(m, SparseLayer)}
    return sum(hidden.get(id(parameter), parameter.numel()) for parameter in model.parameters())
