"""A training whose store is killed by SIGKILL at points that have a name, or at any instant, and started again."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from crash_points import arm
from stored_weights import contents, made, random_mask, small_tiles

from sparseflow.hardware.streaming import store_parameter
from sparseflow.hardware.streaming.spill import Spill
from sparseflow.hardware.streaming.store import Store
from sparseflow.hardware.streaming.store_manifest import NAME
from sparseflow.hardware.streaming.updates import Adam

# Seconds that no training takes.
_PATIENCE = 60.0
_STEPS, _COMMIT_EVERY, _REMASK_AT = 9, 2, (3, 6)
_SHAPE = (13, 60)
# Of a tile: two rows.
_PLACES = 120


@dataclass(frozen=True)
class Point:
    """Before or after the call of that number of a function, in the whole training."""

    function: str
    when: str
    number: int


_STREAMING = "sparseflow.hardware.streaming"

POINTS = {
    "a store is being made": Point(f"{_STREAMING}.slots:MappedFile.write", "after", 2),
    "a store is made but for its manifest": Point(f"{_STREAMING}.store_manifest:Manifest.write", "before", 0),
    "a store is made": Point(f"{_STREAMING}.store_manifest:Manifest.write", "after", 0),
    "a chunk of the other slot is written": Point(f"{_STREAMING}.store_parameter:StoredParameter._put", "after", 17),
    "an update is half done in place": Point(f"{_STREAMING}.store_parameter:StoredParameter._put", "after", 50),
    "one parameter is updated": Point(f"{_STREAMING}.store_parameter:StoredParameter.update", "after", 6),
    "a gradient waits": Point(f"{_STREAMING}.spill:Spill.put", "after", 3),
    "a commit begins": Point(f"{_STREAMING}.store:Store.commit", "before", 2),
    "one file is flushed": Point(f"{_STREAMING}.slots:MappedFile.sync", "after", 4),
    "the names are to be flushed": Point(f"{_STREAMING}.store:sync_directory", "before", 2),
    "a manifest is to be written": Point(f"{_STREAMING}.store_manifest:Manifest.write", "before", 2),
    "a manifest is not on the disk": Point("os:fsync", "before", 9),
    "a manifest is to be renamed": Point("os:replace", "before", 2),
    "a manifest is renamed": Point("os:replace", "after", 2),
    "a commit is done": Point(f"{_STREAMING}.store:Store.commit", "after", 2),
    "the file of a new mask is reserved": Point(f"{_STREAMING}.slots:MappedFile.create", "after", 3),
    "an index is half written": Point(f"{_STREAMING}.store_making:encode", "after", 12),
    "a new mask has come": Point(f"{_STREAMING}.store:Store.remask", "after", 0),
    "the file of an old mask is to go": Point(f"{_STREAMING}.slots:MappedFile.remove", "before", 0),
    "the file of an old mask is gone": Point(f"{_STREAMING}.slots:MappedFile.remove", "after", 0),
}


def train(folder: Path) -> None:
    """Goes on with the training in the folder, or begins it: updates, new masks, and a commit at every second step.

    Writes down what each commit held, before it is made.
    """
    store = Store.open(folder) if (folder / NAME).exists() else _begun(folder)
    with store:
        spill = Spill(store)
        while store.step < _STEPS:
            _step(store, spill)
            if store.step % _COMMIT_EVERY == 0 or store.step == _STEPS:
                folder.with_suffix(f".step-{store.step}").write_text(_digest(store))
                store.commit({"steps": store.step})


def left_in(folder: Path) -> dict[str, object]:
    """What the store of a training holds, and about."""
    with _opened(folder) as store:
        return {**contents(store), "about": store.about}


def is_a_commit(folder: Path) -> bool:
    """Whether the store in a folder is one of those that were to be committed, or the one that it began with."""
    if not (folder / NAME).exists():
        return True
    with _opened(folder) as store:
        store.verify()
        promised = folder.with_suffix(f".step-{store.step}")
        return store.step == 0 or promised.read_text() == _digest(store)


@dataclass(frozen=True)
class Ended:
    """How a training ended: its exit status (negative: by that signal), and whether the point was reached."""

    status: int | None
    reached: bool


def launch(folder: Path, point: Point | None = None) -> Ended:
    """Trains in a process of its own, to the end or to the point."""
    return _ended(_started(folder, point), folder)


def random_kills(folder: Path, count: int, seed: int, seconds: float) -> int:
    """Kills a training again and again at random instants within so many seconds; how many of them hit it."""
    draw, hits = random.Random(seed), 0
    for _ in range(count):
        process = _started(folder, None)
        begun = folder.with_suffix(".begun")
        deadline = time.monotonic() + _PATIENCE
        while not begun.exists() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, seconds))
        process.kill()
        hits += _ended(process, folder).status == -signal.SIGKILL
        assert is_a_commit(folder)
    return hits


@contextmanager
def _opened(folder: Path) -> Iterator[Store]:
    with small_tiles(columns=60, places=_PLACES), Store.open(folder) as store:
        yield store


def _begun(folder: Path) -> Store:
    torch.manual_seed(0)
    weights = {"fc.weight": torch.randn(_SHAPE), "fc.bias": torch.randn(13)}
    return made(folder, weights, {"fc.weight": random_mask(_SHAPE, 0.4, 0)})


def _step(store: Store, spill: Spill) -> None:
    torch.manual_seed(store.step)
    if store.step in _REMASK_AT:
        store.remask("fc.weight", random_mask(_SHAPE, 0.3, store.step))
    for name in store.names:
        spill.put(name, (0, 0), torch.randn(store.nnz(name)))
        gradient = spill.take(name, (0, 0))
        assert gradient is not None
        store.update(name, gradient, Adam(lr=0.1 / (1 + store.step), weight_decay=0.01))
    store.end_step()


def _digest(store: Store) -> str:
    return hashlib.sha256(repr(contents(store)).encode()).hexdigest()


def _started(folder: Path, point: Point | None) -> Any:
    for name in (".begun", ".reached"):
        folder.with_suffix(name).unlink(missing_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "sparseflow.hardware.streaming.spill"])
    process = context.Process(target=_work, args=(folder, point))
    process.start()
    return process


def _ended(process: Any, folder: Path) -> Ended:
    try:
        process.join(_PATIENCE)
    finally:
        process.kill()
        process.join()
    return Ended(process.exitcode, folder.with_suffix(".reached").exists())


def _work(folder: Path, point: Point | None) -> None:
    torch.set_num_threads(1)
    # A process that is killed takes nothing with it that the system has: only a power cut would.
    os.fsync = lambda descriptor: None
    # What is imported stays: looking through all of it again and again would be most of the time.
    gc.freeze()
    # Several of them make a parameter.
    store_parameter.CHUNK = 48
    if point is not None:
        arm(point.function, point.when, point.number, lambda: _die(folder))
    folder.with_suffix(".begun").touch()
    with small_tiles(columns=60, places=_PLACES):
        train(folder)


def _die(folder: Path) -> None:
    folder.with_suffix(".reached").touch()
    os.kill(os.getpid(), signal.SIGKILL)
