"""One file of a commit: what writes it, and how many bytes that takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparseflow.files.container import Sink, write_container
from sparseflow.files.packing import storing_fault


@dataclass(frozen=True)
class Part:
    """Writes one file into a sink, always the same bytes; `nbytes` is about how many, for room and for messages."""

    write: Callable[[Sink], None]
    nbytes: int

    @property
    def sha256(self) -> str:
        """Of what it writes, in hex, without writing it anywhere."""
        sink = _Hash()
        self.write(sink)
        return sink.sha.hexdigest()


class _Hash:
    def __init__(self) -> None:
        self.sha = hashlib.sha256()

    def write(self, data: bytes | memoryview, /) -> None:
        self.sha.update(data)


def tensors_part(tensors: Mapping[str, Tensor]) -> Part:
    """Plain safetensors, which any reader loads; a commit's manifest has its sha256, so that it has none of its own.

    `ValueError` that names the tensor for NaN and infinity, and for what the format does not have.
    """
    ready = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    for name, tensor in ready.items():
        if fault := storing_fault(name, tensor):
            raise ValueError(f"cannot save '{name}': {fault}")
    nbytes = sum(tensor.nbytes + len(name) + 100 for name, tensor in ready.items()) + 100
    return Part(lambda sink: write_container(sink, ready, {"format": "pt"}), nbytes)


def json_part(content: object) -> Part:
    """JSON with sorted keys. `ValueError` for NaN and infinity."""
    return bytes_part((json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def bytes_part(data: bytes) -> Part:
    """These bytes."""
    return Part(lambda sink: _write(sink, data), len(data))


def array_part(array: NDArray[Any]) -> Part:
    """A .npy file."""
    return Part(lambda sink: np.save(_Npy(sink), array, allow_pickle=False), array.nbytes + 128)


def _write(sink: Sink, data: bytes) -> None:
    sink.write(data)


class _Npy:
    """numpy asks for an int back and gives any bytes-like object."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, data: bytes, /) -> int:
        self._sink.write(data)
        return len(data)
