"""What a training has reached, in a file: saved aside and renamed, and taken up again bit for bit.

Everything is canonical: model and optimizer tensors in the order of the dense parameters, under their names,
whatever the backend.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparseflow.files import Weights, load, save
from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.names import dense_name
from sparseflow.masks.masks import Masks


@dataclass(frozen=True)
class Saved:
    """The content of a progress file."""

    model: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


class Progress:
    """One training's file. `identity` says which training it is, so that no other one takes it up."""

    def __init__(self, path: Path, identity: Mapping[str, Any], every_seconds: float = 120.0) -> None:
        self.path = path
        self.identity = dict(identity)
        self.every_seconds = every_seconds
        self._last = time.monotonic()
        self.saved = self._read() if path.exists() else None

    def due(self) -> bool:
        """Whether the last save is longer ago than `every_seconds`."""
        return time.monotonic() - self._last >= self.every_seconds

    def save(
        self,
        model: nn.Module,
        best: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: Mapping[str, Any],
    ) -> None:
        """Writes everything aside and renames it over the last file."""
        parts = {"model": model.state_dict(), "best": best, "optimizer": optimizer}
        tensors = {f"{part}/{key}": tensor for part, group in parts.items() for key, tensor in group.items()}
        save(Weights(tensors, Masks({}), {"identity": self.identity, "state": dict(state)}), self.path)
        self._last = time.monotonic()

    def clear(self) -> None:
        """Removes the file: the training is done."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> Saved:
        file = load(self.path)
        if not isinstance(file, Weights) or file.metadata.get("identity") != self.identity:
            raise ValueError(
                f"{self.path} belongs to another run: expected {self.identity}; start in an empty folder, or "
                "remove that file to train this round from its beginning"
            )
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
        for name, tensor in file.state.items():
            part, _, key = name.partition("/")
            groups[part][key] = tensor
        state = file.metadata["state"]
        assert isinstance(state, dict)
        return Saved(groups["model"], groups["best"], groups["optimizer"], state)


class HasState(Protocol):
    """As much of an optimizer as its state needs."""

    param_groups: list[dict[str, Any]]
    state: Any


def optimizer_state(model: nn.Module, states: Mapping[Tensor, Mapping[str, Any]]) -> dict[str, Tensor]:
    """Name/key → tensor of all optimizer state; tensors like a sparse layer's values are dense, zeros where pruned.

    `states` is an optimizer's `state`.
    """
    state = {}
    for name, parameter, layer in _named(model):
        for key, value in states.get(parameter, {}).items():
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            if layer is not None and tensor.shape == parameter.shape:
                tensor = layer.unpack(tensor)
            state[f"{name}/{key}"] = tensor.detach().clone()
    return state


def restore_optimizer(model: nn.Module, optimizer: HasState, state: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_state`, on a fresh optimizer of the same class."""
    on_device = {
        id(parameter)
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for parameter in group["params"]
    }
    for name, parameter, layer in _named(model):
        keys = [key for key in state if key.rpartition("/")[0] == name]
        restored: dict[str, Any] = {}
        for key in keys:
            tensor = state[key]
            if layer is not None and tensor.shape == torch.Size(layer.weight_shape):
                tensor = layer.pack(tensor.to(parameter.device))
            # Step counters stay on the CPU but for fused and capturable optimizers; the rest goes to the parameter.
            there = tensor.dim() > 0 or id(parameter) in on_device
            restored[key.rpartition("/")[2]] = tensor.to(parameter.device) if there else tensor.clone()
        if restored:
            optimizer.state[parameter] = restored


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter, SparseLayer | None]]:
    layers = {id(module.values): module for module in model.modules() if isinstance(module, SparseLayer)}
    return [(dense_name(name), parameter, layers.get(id(parameter))) for name, parameter in model.named_parameters()]
