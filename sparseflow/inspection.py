"""What a file or a run's folder holds: said in plain data, or written out as weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sparseflow.files import Ticket, Weights, load, save
from sparseflow.integrations import cerebras
from sparseflow.integrations.masked_state import load_masked


def export(source: Path, target: Path, form: str) -> None:
    """Writes the weights of a run, ticket or weights file as `dense` or `compact` safetensors, or for `cerebras`.

    Of a run, the weights at early stop of its last round; of a ticket, the state to train from.
    """
    _check_target(target, form, ("dense", "compact", "cerebras"))
    found = load(_weights_file(source))
    if isinstance(found, Ticket):
        found = Weights(dict(found.rewind), found.masks, {"ticket": found.digest})
    _write(found, target, form)


def import_checkpoint(source: Path, target: Path, form: str, zeros: bool) -> Weights:
    """Writes somebody else's checkpoint as `compact` or `dense` safetensors, and returns what it holds.

    `zeros`: exact zeros that have no mask count as pruned.
    """
    _check_target(target, form, ("compact", "dense"))
    found = load_masked(source, zeros)
    _write(found, target, form)
    return found


def describe_file(path: Path) -> dict[str, Any]:
    """What a safetensors file of ours, or a run's ticket, holds: plain data."""
    found = load(path / "ticket.safetensors" if path.is_dir() else path)
    layers = {
        name: {"shape": list(mask.shape), "kept": int(mask.sum()), "density": float(mask.double().mean())}
        for name, mask in found.masks.items()
    }
    about: dict[str, Any] = {"kind": "ticket" if isinstance(found, Ticket) else "weights"}
    if found.masks:
        about |= {"density": found.masks.density, "masks": found.masks.digest}
    if isinstance(found, Ticket):
        about |= {"digest": found.digest, **found.provenance}
    else:
        about |= {"tensors": len(found.state), **found.metadata}
    return {**about, "layers": layers}


def _check_target(target: Path, form: str, forms: tuple[str, ...]) -> None:
    if form not in forms:
        raise ValueError(f"--format: expected {', '.join(forms[:-1])} or {forms[-1]}, got {form!r}")
    if not target.parent.is_dir():
        raise ValueError(f"{target}: expected a folder {target.parent}, found none; make it first")
    if os.path.isdir(target):
        raise ValueError(f"{target}: expected a file to write, got a folder; add a name such as model.safetensors")


def _write(found: Weights, target: Path, form: str) -> None:
    try:
        if form == "cerebras":
            cerebras.export(found, target)
            return
        save(found, target, format="compact" if form == "compact" else "dense")
    except OSError as error:
        raise ValueError(f"{target}: cannot write it: {error.strerror}; choose another place") from None


def _weights_file(source: Path) -> Path:
    if not source.is_dir():
        return source
    if not (source / "model.safetensors").exists():
        raise ValueError(
            f"{source}: expected a finished run with model.safetensors; finish it with `sparseflow run … --resume`"
        )
    return source / "model.safetensors"
