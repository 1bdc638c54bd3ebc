"""What a search has left in its folder, in a form that compares."""

import json
from pathlib import Path
from typing import Any

from sparseflow.files import Ticket, load

TIMES = ("seconds", "step_seconds")


def left_in(folder: Path) -> dict[str, object]:
    """What lies in a folder, without times and without the order of bytes in containers."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "MANIFEST.json")
    return {path.relative_to(folder).as_posix(): _content(path) for path in files}


def _content(path: Path) -> object:
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix != ".safetensors":
        return path.read_bytes()
    found = load(path)
    if isinstance(found, Ticket):
        return found.digest, _timeless(found.provenance), found.plan
    return {name: tensor.numpy().tobytes() for name, tensor in found.state.items()}, found.masks.digest


def _timeless(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _timeless(value) for key, value in found.items() if key not in TIMES}
    return found
