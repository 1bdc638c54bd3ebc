"""A short search in a folder, and what it leaves there."""

import json
from pathlib import Path
from typing import Any

from tiny_task import tiny_trainer

import sparseflow as sf
from sparseflow.files import Ticket, load
from sparseflow.training.records import Records
from sparseflow.training.trainer import Trainer

TIMES = ("seconds", "step_seconds")


def search(folder: Path, trainer: Trainer | None = None, **changes: Any) -> list[Ticket]:
    """Two rounds, rewound to step 2, evaluated first at step 3: the first stops come before there is a best step."""
    trainer = trainer or tiny_trainer(evaluate_every=3)
    arguments: dict[str, Any] = {"rounds": 2, "rate": 0.5, "floor": 1, "rewind_to": 2, "backend": "dense-compact"}
    return list(sf.imp(trainer, records=Records(folder), **{**arguments, **changes}))


def stop_after(trainer: Trainer, steps: int) -> None:
    """Has the trainer stop when it has asked this often whether to."""
    asked = iter(range(1000))
    trainer.should_stop = lambda: next(asked) >= steps


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
