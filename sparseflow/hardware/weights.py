"""A model's weights one at a time, whether its layers hold them or a store does: dense, under dense names.

All that training does with whole models goes through here, so that it does it to streamed models too. What is to be
kept of one lies in files that are mapped, and not in the memory of the process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.names import unwrapped
from sparseflow.hardware.streaming.execution import Stream, stream_of


class ModelWeights(Protocol):
    """The parameters, and the buffers of the state dict, of one model."""

    @property
    def names(self) -> Sequence[str]:
        """All dense names, in the model's order; a shared or tied weight has several."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tensors are that `read` gives."""
        ...

    def read(self, name: str) -> Tensor:
        """The dense tensor, zeros at the pruned places: only to be read, and only until it changes."""
        ...

    def write(self, name: str, tensor: Tensor) -> None:
        """Replaces what is kept of a tensor by that of a dense one."""
        ...

    def mask(self, name: str) -> Tensor | None:
        """True = kept; None where the tensor has no mask."""
        ...

    def masked(self, name: str) -> bool:
        """Whether it has a mask, without making one."""
        ...

    def copy(self, name: str) -> Tensor:
        """The dense tensor as it is now, to keep."""
        ...

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy of any tensor, to keep."""
        ...


def weights_of(model: nn.Module) -> ModelWeights:
    """The weights of a model, dense, sparse or streamed."""
    stream = stream_of(model)
    return _Held(model) if stream is None else _Streamed(model, stream)


def keep(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of these tensors; on the disk of the model's store, where it has one."""
    weights = weights_of(model)
    return {name: weights.keep(tensor) for name, tensor in tensors.items()}


class _Held:
    """In the layers."""

    def __init__(self, model: nn.Module) -> None:
        self._places = _places(model)
        parameters = (module._parameters.get(key) for module, key in self._places.values())
        self._device = next(found.device for found in parameters if found is not None)

    @property
    def names(self) -> Sequence[str]:
        return list(self._places)

    @property
    def device(self) -> torch.device:
        return self._device

    def read(self, name: str) -> Tensor:
        module, key = self._places[name]
        if isinstance(module, SparseLayer) and key == "values":
            return module.unpack(module.values.detach())
        return _tensor(module, key).detach()

    def write(self, name: str, tensor: Tensor) -> None:
        module, key = self._places[name]
        with torch.no_grad():
            if isinstance(module, SparseLayer) and key == "values":
                module.values.copy_(module.pack(tensor.to(module.values.device)))
            else:
                _tensor(module, key).copy_(tensor)

    def mask(self, name: str) -> Tensor | None:
        module, _ = self._places[name]
        return module.mask if isinstance(module, SparseLayer) and self.masked(name) else None

    def masked(self, name: str) -> bool:
        module, key = self._places[name]
        return isinstance(module, SparseLayer) and key == "values"

    def copy(self, name: str) -> Tensor:
        module, key = self._places[name]
        found = self.read(name)
        return found if isinstance(module, SparseLayer) and key == "values" else found.clone()

    def keep(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone()


class _Streamed:
    """In a store."""

    def __init__(self, model: nn.Module, stream: Stream) -> None:
        self._places, self._stream = _places(model), stream

    @property
    def names(self) -> Sequence[str]:
        return list(self._places)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def read(self, name: str) -> Tensor:
        module, key = self._places[name]
        if key not in module._parameters:
            return _tensor(module, key).detach().cpu()
        name, store = self._first(module, key), self._stream.store
        return self._stream.read(name) if store.masked(name) else store.values(name).view(store.shape(name))

    def write(self, name: str, tensor: Tensor) -> None:
        module, key = self._places[name]
        if key in module._parameters:
            self._stream.write(self._first(module, key), tensor)
        else:
            _tensor(module, key).copy_(tensor)

    def mask(self, name: str) -> Tensor | None:
        module, key = self._places[name]
        return self._stream.mask(self._first(module, key)) if key in module._parameters else None

    def masked(self, name: str) -> bool:
        module, key = self._places[name]
        return key in module._parameters and self._stream.store.masked(self._first(module, key))

    def copy(self, name: str) -> Tensor:
        module, key = self._places[name]
        if key not in module._parameters:
            return self.keep(_tensor(module, key).detach())
        name, store = self._first(module, key), self._stream.store
        return self._stream.read(name, store.room(store.shape(name), torch.float32))

    def keep(self, tensor: Tensor) -> Tensor:
        return self._stream.store.room(tensor.shape, tensor.dtype).copy_(tensor.detach())

    def _first(self, module: nn.Module, key: str) -> str:
        parameter = module._parameters[key]
        assert parameter is not None
        return self._stream.name_of(parameter)


def _places(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    found: dict[str, tuple[nn.Module, str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if isinstance(module, SparseLayer):
            found[unwrapped(f"{prefix}weight")] = module, "values"
        for key, parameter in module._parameters.items():
            if parameter is not None and not (key == "values" and isinstance(module, SparseLayer)):
                found[unwrapped(f"{prefix}{key}")] = module, key
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                found[unwrapped(f"{prefix}{key}")] = module, key
    return found


def _tensor(module: nn.Module, key: str) -> Tensor:
    found = module._parameters[key] if key in module._parameters else module._buffers[key]
    assert found is not None
    return found
