"""Does the run's folder keep what it is given? Checkpoints rest on rename and fsync."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from sparseflow.doctor.finding import Finding, ok, warning, wrong
from sparseflow.recipes import Recipe
from sparseflow.runs import open_run

# A file system that takes longer for each of a commit's files holds up training.
_SLOW_MS = 1000.0
# A clock further away than this misleads make, log readers and whoever looks for the newest file.
_CLOCK_SECONDS = 2.0


def check_folder(out: Path, recipe: Recipe | None, named: bool = True) -> list[Finding]:
    """Everything about `out`: that it is there or can be made, can be written, renames, syncs, and keeps time.

    `named` says whether the user gave it, and may have mistyped it.
    """
    place = existing(out)
    if not place.is_dir():
        return [wrong("folder", f"--out: expected a folder, and {place} is a file; choose another --out")]
    found = _says(out, place, recipe, named)
    try:
        with scratch(place) as folder:
            found += [check_rename(folder), check_fsync(folder), check_clock(folder)]
    except OSError as error:
        found = [wrong("folder", f"--out: cannot write into {place}: {error.strerror}; choose another --out")]
    return found


def existing(out: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    place = out.absolute()
    # Path.exists raises where a folder above may not be looked into.
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    return place


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """A folder in `place`, gone afterwards. OSError where none can be made."""
    folder = Path(tempfile.mkdtemp(prefix=".sparseflow-doctor-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_rename(folder: Path) -> Finding:
    """Whether a renamed file takes another's place whole, and a renamed folder keeps what is in it."""
    new, old, target = folder / "new", folder / "target", folder / "folder"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    (folder / ".folder").mkdir()
    (folder / ".folder" / "file").write_bytes(b"kept")
    try:
        os.replace(new, old)
        (folder / ".folder").rename(target)
    except OSError as error:
        return wrong(
            "rename", f"--out: the file system of {folder.parent} does not rename: {error.strerror}; use another"
        )
    if old.read_bytes() != b"new" or new.exists() or (target / "file").read_bytes() != b"kept":
        return wrong("rename", f"--out: on {folder.parent} a renamed file does not take another's place; use another")
    return ok("rename", "files take each other's place, folders keep what is in them")


def check_fsync(folder: Path) -> Finding:
    """Whether what is written can be forced to the disk, and how long that takes for 1 MiB and for a folder."""
    try:
        milliseconds = median(_sync_seconds(folder / f"file-{number}") for number in range(5)) * 1000
    except OSError as error:
        return wrong(
            "fsync",
            f"--out: the file system of {folder.parent} cannot be told to write: {error.strerror}; a checkpoint there "
            "would not survive a power cut; use another",
        )
    text = f"{milliseconds:.1f} ms for 1 MiB and its folder"
    if milliseconds > _SLOW_MS:
        return warning("fsync", f"{text}, expected at most {_SLOW_MS:.0f}: training waits for every checkpoint")
    return ok("fsync", text)


def check_clock(folder: Path) -> Finding:
    """The clock of the file system beside this machine's."""
    path, before = folder / "clock", time.time()
    path.write_bytes(b"now")
    after, stamp = time.time(), path.stat().st_mtime
    off = min(stamp - before, 0.0) or max(stamp - after, 0.0)
    if abs(off) > _CLOCK_SECONDS:
        ahead = "ahead of" if off > 0 else "behind"
        return warning(
            "clock", f"files in {folder.parent} are {abs(off):.0f} s {ahead} this machine's clock; sync both"
        )
    return ok("clock", "files have this machine's time")


def _says(out: Path, place: Path, recipe: Recipe | None, named: bool) -> list[Finding]:
    if place == out.absolute():
        return [_holds(out, recipe)]
    if place == out.absolute().parent or not named:
        return [ok("folder", f"{out} will be made")]
    text = f"{out} will be made with the folders above it, from {place} on; expected at least its parent: mistyped?"
    return [warning("folder", text)]


def _holds(out: Path, recipe: Recipe | None) -> Finding:
    if recipe is None:
        return ok("folder", f"{out} is there")
    try:
        open_run(out, recipe, resume=True)
    except ValueError as error:
        return wrong("folder", error)
    if (out / "recipe.yaml").exists():
        return ok("folder", f"{out} holds a run of this recipe; --resume goes on with it")
    return ok("folder", f"{out} is empty")


def _sync_seconds(path: Path) -> float:
    content = bytes(1 << 20)
    began = time.perf_counter()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return time.perf_counter() - began
