"""A committed checkpoint against a plain torch.save of the same tensors."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from sparseflow.bench.clock import ratios, take_turns
from sparseflow.bench.figure import Figure
from sparseflow.files.commit import commit, validate
from sparseflow.files.part import tensors_part

_BYTES = 400_000_000


def saving(folder: Path, nbytes: int = _BYTES) -> list[Figure]:
    """Time of a commit with sha256 over that of torch.save; each is a new file, that takes the place of an older one.

    Over a torch.save that is flushed to the disk, as a commit is, and over one that is not, and may be gone after a
    power cut. `folder` is on the disk to measure.
    """
    generator = torch.Generator().manual_seed(0)
    state = {f"layer{index}": torch.randn(nbytes // 64, generator=generator) for index in range(16)}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        target, plain, flushed = Path(place) / "commit", Path(place) / "plain.pt", Path(place) / "flushed.pt"
        sides = take_turns(
            {
                "commit": lambda: commit(target, lambda: {"state.safetensors": tensors_part(state)}),
                "torch.save, flushed": lambda: _save(state, flushed, flush=True),
                "torch.save": lambda: _save(state, plain, flush=False),
            }
        )
        # What was timed is what can be read again.
        validate(target)
    name = f"commit {nbytes / 1e6:.0f} MB with sha256 / torch.save"
    others = {"flushed too": sides["torch.save, flushed"], "which is not flushed": sides["torch.save"]}
    return [
        Figure(f"{name}, {how}", "x", 1.15, False, ratios(sides["commit"], theirs), seconds=sides)
        for how, theirs in others.items()
    ]


def _save(state: dict[str, Tensor], path: Path, flush: bool) -> None:
    # Not over the old one, which would be lost if this were interrupted.
    new = path.with_suffix(".new")
    with open(new, "wb") as file:
        torch.save(state, file)
        if flush:
            file.flush()
            os.fsync(file.fileno())
    os.replace(new, path)
