"""DeepSpeed's checkpoints as committed directories: all shards of a step, or none.

DeepSpeed writes each rank's file under its final name, without fsync, and then the name of the step into `latest`,
which it trusts. Here it only says what its files hold. They go through `sparseflow.files.commit`, and are read
through `zero_pickles`; `latest` is not written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import JsonValue
from torch import Tensor

from sparseflow.files.container import Sink
from sparseflow.files.manifest import Manifest
from sparseflow.files.part import Part
from sparseflow.files.shelf import Shelf
from sparseflow.ranks import Ranks
from sparseflow_launchers.zero_files import OURS
from sparseflow_launchers.zero_pickles import read_pickle
from sparseflow_launchers.zero_slices import Engine, live_slices, named_parameters

T = TypeVar("T")

_PIECE = 2**19


class ZeroCheckpoints:
    """The checkpoints of one training, `step-000200/` and so on in `folder`; every method is called by all ranks."""

    def __init__(self, folder: Path, identity: Mapping[str, JsonValue], ranks: Ranks) -> None:
        self.shelf, self.identity, self.ranks = Shelf(folder, ranks), dict(identity), ranks

    def valid_steps(self) -> list[int]:
        """The steps that have a valid checkpoint, in order. Damaged ones are told of by a warning.

        ValueError where one is of another training, or of another number of processes or stage: DeepSpeed reads back
        only what was cut alike. The first call clears what a process that died has left, and reads all checkpoints.
        """
        self.shelf.sweep()
        found = {step: manifest for step in self.steps() if (manifest := self.shelf.valid(_name(step)))}
        for step, manifest in found.items():
            self._check(step, manifest)
        return list(found)

    def state(self, step: int) -> Mapping[str, JsonValue]:
        """What `save` was given as the state of a valid step."""
        manifest = self.shelf.valid(_name(step))
        assert manifest is not None
        return manifest.about

    def read(self, step: int, file: str, reader: Callable[[Path], T]) -> T:
        """What the reader makes of a file of a valid step."""
        return self.shelf.read(_name(step), file, reader)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order; damaged ones too."""
        return sorted(int(name[5:]) for name in self.shelf.names() if name.startswith("step-"))

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.shelf.folder / _name(step)

    def save(
        self,
        engine: Engine,
        step: int,
        state: Mapping[str, JsonValue],
        parts: Mapping[str, Part],
        note: Mapping[str, JsonValue],
    ) -> None:
        """Commits what every rank holds. `state` goes into the manifest, `parts` are more files, of rank 0; `note` is
        what `ZeroFiles.about` gives back.

        FloatingPointError, on all ranks, where a weight is not finite. OSError as `commit` raises it.
        """
        self._check_finite(engine, step)
        found = _capture(engine, {OURS: {**note, "step": step, "groups": _groups(engine)}})
        mine = {path: _pickle(content) for path, content in found.items()}
        more = dict(parts) if self.ranks.main else {}
        self.shelf.commit_each(_name(step), lambda: {**mine, **more}, {**self.identity, **state, "step": step})

    def load(self, engine: Engine, step: int) -> None:
        """Takes up a checkpoint of `valid_steps`: weights, optimizer and counters, bit for bit."""
        before, engine.checkpoint_engine = engine.checkpoint_engine, _Reading()
        try:
            path, _ = engine.load_checkpoint(str(self.shelf.folder), tag=_name(step))
        finally:
            engine.checkpoint_engine = before
        if path is None:
            raise ValueError(f"{self.folder(step)}: DeepSpeed found no checkpoint in it; remove it")

    def keep(self, steps: set[int]) -> None:
        """Removes the checkpoints of all other steps."""
        for step in self.steps():
            if step not in steps:
                self.shelf.remove(_name(step))

    def _check(self, step: int, manifest: Manifest) -> None:
        for key, mine in self.identity.items():
            theirs = manifest.about.get(key)
            if theirs != mine:
                raise ValueError(
                    f"{self.folder(step)} was written with {key} {theirs}, and this training has {key} {mine}: "
                    f"DeepSpeed reads back only what is alike. Go on as it was begun, or remove {self.shelf.folder} to "
                    "train round 0 anew; the sparse rounds after it take any number of processes"
                )

    def _check_finite(self, engine: Engine, step: int) -> None:
        wrong = sum(int((~part.values.isfinite()).sum()) for part in live_slices(engine))
        if int(self.ranks.sum(torch.tensor([wrong]))):
            raise FloatingPointError(
                f"weights are not finite at step {step}; nothing of it was saved. Lower the learning rate, clip the "
                "gradient, or warm up longer"
            )


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _groups(engine: Engine) -> list[list[str]]:
    """The names of the parameters in the order of DeepSpeed's groups, where those are not in the files."""
    names = {parameter: name for name, parameter in named_parameters(engine)}
    if engine.zero_optimization() or isinstance(engine.optimizer, torch.optim.Optimizer):
        return []
    return [[names[parameter] for parameter in group] for group in engine.optimizer.fp16_groups]


def _capture(engine: Engine, note: Mapping[str, Any]) -> dict[str, Any]:
    """File name → what DeepSpeed would write into it: its tensors, not copies of them."""
    before, engine.checkpoint_engine = engine.checkpoint_engine, _Capturing()
    try:
        # It makes folders and leaves scripts there.
        with tempfile.TemporaryDirectory() as folder:
            engine.save_checkpoint(folder, tag="captured", client_state=dict(note), save_latest=False)
        found: dict[str, Any] = engine.checkpoint_engine.found
    finally:
        engine.checkpoint_engine = before
    return found


def _pickle(content: Any) -> Part:
    return Part(lambda sink: torch.save(content, _Pieces(sink)), _nbytes(content))  # type: ignore[arg-type]


def _nbytes(content: Any) -> int:
    if isinstance(content, Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(_nbytes(value) for value in content.values())
    return sum(_nbytes(value) for value in content) if isinstance(content, list | tuple) else 100


class _Pieces:
    """torch.save reuses the memory that it gives to `write`, and a sink may look at it later: so it gets copies."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            self._sink.write(bytes(view[start : start + _PIECE]))
        return len(view)

    def flush(self) -> None:
        """Left to the sink."""


class _Passive:
    """As much of DeepSpeed's CheckpointEngine as its engine calls, doing nothing."""

    name = "sparseflow"

    def create(self, info: object) -> None: ...

    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...

    def commit(self, info: object) -> bool:
        return True

    def is_decoupled(self) -> bool:
        return False

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        return dp_rank == 0

    def preserves_storage_sharing(self) -> bool:
        return True


class _Capturing(_Passive):
    """Keeps what it is to save."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def save(self, state_dict: Any, path: str) -> None:
        self.found[Path(path).name] = state_dict


class _Reading(_Passive):
    """Reads with our rules: nothing but tensors and DeepSpeed's own classes."""

    def load(self, path: str, map_location: Any = None) -> dict[str, Any]:
        return read_pickle(Path(path), mapped=False)
