"""What one file of a commit holds, for `Shelf.read`: the counterparts of the parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparseflow.files.sparse_safetensors import load
from sparseflow.files.ticket import Ticket, Weights


def read_ticket(path: Path) -> Ticket:
    """The ticket in a file."""
    found = load(path)
    assert isinstance(found, Ticket)
    return found


def read_weights(path: Path) -> Weights:
    """The weights in a file, sparse or plain."""
    found = load(path)
    assert isinstance(found, Weights)
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a plain file, by name, on the CPU."""
    return read_weights(path).state


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    found = json.loads(path.read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def read_array(path: Path) -> NDArray[Any]:
    """The array in a .npy file."""
    found: NDArray[Any] = np.load(path, allow_pickle=False)
    return found
