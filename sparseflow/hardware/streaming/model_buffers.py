"""The buffers of a streamed model, such as BatchNorm's statistics: they stay in memory, and go with a commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from sparseflow.hardware.names import unwrapped
from sparseflow.hardware.streaming.store import Store

_KEY = "buffers"


def float_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that a store keeps as it keeps parameters: float32, and in the model's state dict."""
    return {name: buffer for name, buffer in _persistent(model) if buffer.dtype == torch.float32}


def save_buffers(model: nn.Module, store: Store) -> dict[str, JsonValue]:
    """Writes them to the store. Gives what it cannot keep, counters mostly, as JSON to commit with it."""
    for name, buffer in float_buffers(model).items():
        store.write(name, buffer.detach().to("cpu"))
    return {_KEY: {name: buffer.tolist() for name, buffer in _others(model)}}


def load_buffers(model: nn.Module, store: Store, about: Mapping[str, JsonValue]) -> None:
    """The inverse, into the model."""
    for name, buffer in float_buffers(model).items():
        buffer.copy_(store.read(name))
    saved = about.get(_KEY, {})
    assert isinstance(saved, dict)
    for name, buffer in _others(model):
        if name in saved:
            buffer.copy_(torch.tensor(saved[name], dtype=buffer.dtype))


def _others(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, buffer) for name, buffer in _persistent(model) if buffer.dtype != torch.float32)


def _persistent(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                yield unwrapped(f"{path}.{key}" if path else key), buffer
