"""The folder of a store: one process at a time, the files that the manifest names, and nothing else of ours."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from sparseflow.hardware.streaming.slots import MappedFile
from sparseflow.hardware.streaming.store_manifest import NAME, SCRATCH, SUFFIX, Manifest, Record, damaged

_NONE = "no parameter"


def lock(folder: Path) -> int:
    """A descriptor that keeps other stores out of the folder until it is closed. `ValueError` where one is in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"the store {folder} is open already: close it there, or wait for the process to end"
        ) from None
    return descriptor


def check_model(folder: Path, manifest: Manifest, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """`ValueError` that names the first difference unless the store has exactly these parameters."""
    stored = {record.name: record.shape for record in manifest.parameters}
    for name in sorted(stored.keys() | shapes.keys()):
        has, expected = stored.get(name, _NONE), shapes.get(name, _NONE)
        if has != expected:
            raise ValueError(
                f"{folder} is the store of another model: for {name!r}, it has {has} and the model {expected}; open it "
                "with the model that it was made for, or make a new store"
            )


def mapped(folder: Path, record: Record) -> MappedFile:
    """The file of a parameter. `ValueError` where it is missing or has another size."""
    path = folder / record.file
    size = path.stat().st_size if path.is_file() else None
    if size != record.nbytes:
        got = "no such file" if size is None else f"{size} bytes"
        raise ValueError(damaged(record, f"expected {record.nbytes} bytes in {folder}, got {got}"))
    return MappedFile(path)


def sweep(folder: Path, records: Iterable[Record]) -> None:
    """Removes what a process that died has left: other parameters' files than these, and half a manifest."""
    known = {record.file for record in records}
    for path in sorted(folder.iterdir()):
        left = path.name.endswith((SUFFIX, SCRATCH)) and path.name not in known
        if left or (path.name.startswith(f".{NAME}.") and path.name.endswith(".tmp")):
            path.unlink()
