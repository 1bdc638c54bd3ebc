"""What a training has reached, in checkpoints that are there whole or not at all, and taken up again bit for bit.

step-000120/state.safetensors     model, best state and optimizer
step-000120/rank-0.safetensors    the random number generators of each rank
step-000120/MANIFEST.json         which training it is, its step, its plan

Everything is canonical: model and optimizer tensors in the order of the dense parameters, under their names,
whatever the backend.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from sparseflow.files.manifest import Manifest
from sparseflow.files.part import Part, tensors_part
from sparseflow.files.readers import read_tensors
from sparseflow.files.shelf import Shelf
from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.names import dense_name
from sparseflow.training.rng import restore_rng_state, rng_state

_STATE = "state.safetensors"
# What a streamed model's store and the checkpoint that goes with it have in common.
TOKEN = "store"


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint. `rng`: the generators of this rank, None where the launch had no such rank."""

    model: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    rng: dict[str, Tensor] | None

    def restore_rng(self) -> None:
        """Sets this process's random number generators to where they were."""
        if self.rng is not None:
            restore_rng_state(self.rng)


class Progress:
    """The checkpoints of one training, on a shelf of its own; made, and called, by all ranks alike.

    `identity` says which training it is, so that no other one takes it up. `about` is asked at each save for what else
    belongs into the checkpoint's manifest. `saved` is the newest valid checkpoint, or None. Of a streamed model, whose
    weights and optimizer state are in its store, it is the one that the store was committed with: the one whose state
    has the `token` that the store has.
    """

    def __init__(
        self,
        shelf: Shelf,
        identity: Mapping[str, JsonValue],
        every_seconds: float = 120.0,
        about: Callable[[], Mapping[str, JsonValue]] = dict,
        token: str | None = None,
    ) -> None:
        self.identity = dict(identity)
        self.every_seconds = every_seconds
        self._shelf, self._about, self._token = shelf, about, token
        self._last = time.monotonic()
        self._newest: str | None = None
        self.saved = self._read()

    def due(self) -> bool:
        """Whether the last save is longer ago than `every_seconds`: of use to rank 0 alone, whose clock decides."""
        return time.monotonic() - self._last >= self.every_seconds

    def save(
        self,
        model: Mapping[str, Tensor],
        best: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: Mapping[str, JsonValue],
    ) -> None:
        """Commits a checkpoint; then, of those before it, only the newest valid one stays. All ranks call it.

        Tensors are rank 0's: the others may give none. `state` has the "step", and whatever else is plain JSON, such
        as the state of a gradient scaler.
        """
        ranks = self._shelf.ranks
        name = f"step-{state['step']:06d}"

        def parts() -> dict[str, Part]:
            generators = {f"rank-{ranks.rank}.safetensors": tensors_part(rng_state())}
            if not ranks.main:
                return generators
            groups = {"model": model, "best": best, "optimizer": optimizer}
            tensors = {f"{group}/{key}": tensor for group, found in groups.items() for key, tensor in found.items()}
            return {_STATE: tensors_part(tensors), **generators}

        about = {"identity": self.identity, "state": dict(state), "world": ranks.world, **self._about()}
        self._shelf.commit_each(name, parts, about)
        # Whatever else is there was damaged, or is older than the one before.
        for other in self._steps():
            if other not in (name, self._newest):
                self._shelf.remove(other)
        self._newest, self._last = name, time.monotonic()

    def _steps(self) -> list[str]:
        numbered = {int(m[1]): m[0] for name in self._shelf.names() if (m := re.fullmatch(r"step-(\d+)", name))}
        return [numbered[step] for step in sorted(numbered)]

    def _read(self) -> Saved | None:
        for name in reversed(self._steps()):
            manifest = self._shelf.valid(name)
            if manifest is None or _token_of(manifest) != self._token:
                continue
            if manifest.about.get("identity") != self.identity:
                raise ValueError(
                    f"{self._shelf.folder / name} belongs to another run: expected {self.identity}, got "
                    f"{manifest.about.get('identity')}; start in an empty folder, or remove {self._shelf.folder} to "
                    "train this round from its beginning"
                )
            self._newest = name
            groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
            for key, tensor in self._shelf.read(name, _STATE, read_tensors).items():
                group, _, key = key.partition("/")
                groups[group][key] = tensor
            state = manifest.about["state"]
            assert isinstance(state, dict)
            return Saved(groups["model"], groups["best"], groups["optimizer"], state, self._generators(name))
        return None

    def _generators(self, name: str) -> dict[str, Tensor] | None:
        manifest = self._shelf.valid(name)
        assert manifest is not None
        mine = f"rank-{self._shelf.ranks.rank}.safetensors"
        # Where the launch was smaller, a rank has no file and reads rank 0's, so that all read alike.
        found = self._shelf.read(name, mine if mine in manifest.files else "rank-0.safetensors", read_tensors)
        return found if mine in manifest.files else None


def _token_of(manifest: Manifest) -> JsonValue:
    state = manifest.about.get("state")
    return state.get(TOKEN) if isinstance(state, dict) else None


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
