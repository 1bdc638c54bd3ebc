"""A directory of files that is there whole or not at all, written by one process or by all of a launch.

.tmp-round-03-5f0c…/    where the files are written, each flushed to the disk
round-03/               the same directory, renamed once MANIFEST.json with every size and sha256 is on the disk too
.old-round-03           what stood there before, for the moment between two renames; put back where there is no new one
.del-round-03-91d2…/    on its way out

So whatever ends the process, a directory under its own name is whole, and one that is not shows in its manifest.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from pydantic import JsonValue

from sparseflow.atomic import sync_directory
from sparseflow.files.manifest import NAME, CommitError, CommitRule, Entry, Manifest, read_manifest
from sparseflow.files.part import Part, bytes_part
from sparseflow.ranks import ALONE, Ranks

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Less is hashed before a thread would have begun.
_WORTH_A_THREAD = 2**20


def commit(
    target: Path,
    parts: Callable[[], Mapping[str, Part]],
    ranks: Ranks = ALONE,
    about: Mapping[str, JsonValue] | None = None,
) -> Manifest:
    """Puts a directory with these files in the place of `target`; every rank calls it, and gives files of its own.

    `parts` is called once on each rank; names are the files' own, without folders. `about` is rank 0's, JSON that
    goes into the manifest. What stood there before stays valid until the new one is.

    An error on any rank is raised on all, nothing of it stays, and what stood there before is untouched. OSError as
    the system raises it; where the disk is full it names the path, and the bytes needed.
    """
    mine = ranks.each(lambda: dict(parts()))
    needed = sum(ranks.gather(sum(part.nbytes for part in mine.values())))

    def write(temporary: Path) -> dict[str, Entry]:
        return ranks.each(lambda: {name: _write(temporary / name, part, needed) for name, part in mine.items()})

    return _commit(target, needed, write, ranks, about)


def commit_written(
    target: Path,
    write: Callable[[Path], None],
    ranks: Ranks = ALONE,
    about: Mapping[str, JsonValue] | None = None,
    nbytes: int = 0,
) -> Manifest:
    """As `commit`, for files that a library writes: every rank calls `write` with the directory to write them into.

    They are flushed and hashed afterwards, which reads them once more, each rank its share. `nbytes`: how many bytes
    this rank will write, if it knows.
    """

    def write_and_hash(temporary: Path) -> dict[str, Entry]:
        ranks.each(lambda: write(temporary))
        names = ranks.first(lambda: sorted(_files(temporary)))
        return ranks.each(lambda: {name: _hash(temporary / name) for name in names[ranks.rank :: ranks.world]})

    return _commit(target, sum(ranks.gather(nbytes)), write_and_hash, ranks, about)


def validate(target: Path) -> Manifest:
    """The manifest of a committed directory, once every byte of it has been checked; reads all files.

    `CommitError` that names directory, file and rule: a file too few or too many, of another size or sha256, or a
    manifest that is missing, damaged, or of an unknown version.
    """
    manifest = read_manifest(target)
    there = set(_files(target)) - {NAME}
    for name in sorted(manifest.files.keys() | there):
        if name not in there:
            raise CommitError(target, name, CommitRule.MISSING, "expected this file, found none")
        if name not in manifest.files:
            raise CommitError(target, name, CommitRule.EXTRA, "a file that was not committed")
    for name in sorted(manifest.files):
        check_file(target, name, manifest)
    return manifest


def check_file(target: Path, name: str, manifest: Manifest) -> None:
    """`CommitError` unless this file of a committed directory is what its manifest says."""
    expected, path = manifest.files[name], target / name
    size = path.stat().st_size if path.is_file() else None
    if size != expected.size:
        raise CommitError(target, name, CommitRule.SIZE, f"expected {expected.size} bytes, got {size}")
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected.sha256:
        raise CommitError(target, name, CommitRule.SHA256, f"expected the sha256 {expected.sha256}, got {actual}")


def remove(target: Path) -> None:
    """Removes a committed directory, if it is there; what is half removed no longer bears its name."""
    if target.is_dir():
        doomed = target.with_name(f".del-{target.name}-{secrets.token_hex(4)}")
        os.rename(target, doomed)
        shutil.rmtree(doomed)


def sweep(folder: Path) -> None:
    """Clears what a process that died has left in a folder. None may be at work in it."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".old-"):
            _put_back(folder / path.name.removeprefix(".old-"))
        if path.name.startswith((".tmp-", ".del-", ".old-")):
            _clear(path)


def _clear(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _put_back(target: Path) -> None:
    before = _before(target)
    if before.exists() and not target.exists():
        os.rename(before, target)


def _before(target: Path) -> Path:
    return target.with_name(f".old-{target.name}")


def _commit(
    target: Path,
    needed: int,
    write: Callable[[Path], dict[str, Entry]],
    ranks: Ranks,
    about: Mapping[str, JsonValue] | None,
) -> Manifest:
    temporary = Path(ranks.first(lambda: str(_begin(target, needed))))
    try:
        everybody = ranks.gather({name: entry.model_dump() for name, entry in write(temporary).items()})
        files = {name: Entry(**entry) for entries in everybody for name, entry in entries.items()}
        published = ranks.first(
            lambda: _publish(temporary, target, Manifest(files=files, about=dict(about or {})), needed)
        )
        return Manifest(files=files, about=published)
    except BaseException:
        if ranks.main:
            _put_back(target)
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _begin(target: Path, needed: int) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise OSError(errno.ENOSPC, _no_room(target, needed, f"{free} are free"))
    temporary = target.with_name(f".tmp-{target.name}-{secrets.token_hex(4)}")
    temporary.mkdir()
    return temporary


def _no_room(path: Path, needed: int, why: str) -> str:
    return (
        f"no room for {path}, which needs {needed} bytes: {why}; what was saved before is intact. Make room, and go "
        "on from there"
    )


def _write(path: Path, part: Part, needed: int) -> Entry:
    with ThreadPoolExecutor(1) as thread:
        try:
            with open(path, "xb") as file:
                sink = _Hashing(file, thread)
                part.write(sink)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise OSError(error.errno, _no_room(path, needed, str(error.strerror))) from error
    return Entry(size=sink.size, sha256=sink.sha256.hexdigest())


class _Hashing:
    """A file whose bytes are hashed on a thread beside the writing; done when the thread is."""

    def __init__(self, file: BinaryIO, thread: ThreadPoolExecutor) -> None:
        self.sha256, self.size = hashlib.sha256(), 0
        self._file, self._thread, self._threaded = file, thread, False

    def write(self, data: bytes | memoryview, /) -> None:
        nbytes = memoryview(data).nbytes
        self.size += nbytes
        # Once there is something in the thread's queue, all that follows must queue behind it.
        self._threaded = self._threaded or nbytes >= _WORTH_A_THREAD
        if self._threaded:
            self._thread.submit(self.sha256.update, data)
        else:
            self.sha256.update(data)
        self._file.write(data)


def _hash(path: Path) -> Entry:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256")
    return Entry(size=path.stat().st_size, sha256=digest.hexdigest())


def _publish(temporary: Path, target: Path, manifest: Manifest, needed: int) -> dict[str, JsonValue]:
    # What the other ranks have written must be seen from here before it counts.
    for name, entry in manifest.files.items():
        size = (temporary / name).stat().st_size
        if size != entry.size:
            raise CommitError(temporary, name, CommitRule.SIZE, f"expected {entry.size} bytes, got {size}")
    text = manifest.to_text().encode()
    _write(temporary / NAME, bytes_part(text), needed)
    for directory in sorted({(temporary / name).parent for name in manifest.files} | {temporary}, reverse=True):
        sync_directory(directory)
    before = _before(target)
    if target.exists():
        _clear(before)
        os.rename(target, before)
    os.rename(temporary, target)
    sync_directory(target.parent)
    _clear(before)
    return manifest.about


def _files(directory: Path) -> Iterator[str]:
    for path in directory.rglob("*"):
        if not path.is_dir() or path.is_symlink():
            yield path.relative_to(directory).as_posix()
