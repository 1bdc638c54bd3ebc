"""A whole model seen through its dense names: its weights, masks, state and optimizer groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.names import unwrapped
from sparseflow.hardware.streaming.execution import stream_of
from sparseflow.hardware.streaming.units import every_name
from sparseflow.hardware.survey import survey
from sparseflow.hardware.weights import weights_of


def dense_weights(model: nn.Module) -> dict[str, Tensor]:
    """Dense name → weight of every prunable layer, in the model's order; a copy only where the layer is sparse.

    Only to be read, and of a streamed model only until it changes.
    """
    weights = weights_of(model)
    return {name: weights.copy(name) if weights.masked(name) else weights.read(name) for name in survey(model).sites}


def current_masks(model: nn.Module) -> dict[str, Tensor]:
    """Dense name → mask of every layer that has one."""
    weights = weights_of(model)
    masks = ((name, weights.mask(name)) for name in survey(model).sites)
    return {name: mask for name, mask in masks if mask is not None}


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
    """The state dict that the dense model would have: dense names, zeros at pruned places, detached copies.

    Of a streamed model they are mapped files, beside its store.
    """
    weights = weights_of(model)
    return {name: weights.copy(name) for name in weights.names}


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
    sparse = _masked_names(model)
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


def _masked_names(model: nn.Module) -> set[str]:
    stream = stream_of(model)
    if stream is not None:
        firsts = {name for name in stream.names if stream.store.masked(name)}
        return {name for name, first in every_name(model).items() if first in firsts}
    return {
        unwrapped(f"{path}.weight" if path else "weight")
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, SparseLayer)
    }


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


def trained_numel(model: nn.Module) -> int:
    """Number of parameters that are kept, and hence trained."""
    stream = stream_of(model)
    if stream is not None:
        return sum(map(stream.store.nnz, stream.names))
    return sum(parameter.numel() for parameter in model.parameters())
