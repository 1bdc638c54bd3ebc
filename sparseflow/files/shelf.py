"""A folder of committed directories, as all ranks of a launch see it alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue

from sparseflow.files.commit import check_file, commit, remove, sweep, validate
from sparseflow.files.manifest import CommitError, Manifest
from sparseflow.files.part import Part
from sparseflow.ranks import ALONE, Ranks

T = TypeVar("T")


class Shelf:
    """The committed directories of `folder`. Every method is called by all ranks.

    What the folder holds is looked at by rank 0, and told to the others; each directory is validated once, before the
    first use of it, and a damaged one is reported once, by a warning that names file and rule.
    """

    def __init__(self, folder: Path, ranks: Ranks = ALONE) -> None:
        self.folder, self.ranks = folder, ranks
        self._known: dict[str, Manifest | None] = {}

    def names(self) -> list[str]:
        """The names of the committed directories, damaged ones too, sorted."""
        found: list[str] = self.ranks.first(lambda: sorted(_names(self.folder)))
        return found

    def valid(self, name: str) -> Manifest | None:
        """The manifest of a directory, or None where it is missing or damaged. The first call reads all of it."""
        if name not in self._known:
            verdict = self.ranks.first(lambda: _judge(self.folder / name))
            if verdict is None:
                return None
            if "fault" in verdict and self.ranks.main:
                warnings.warn(f"{verdict['fault']}; falling back on what was saved before it", stacklevel=2)
            self._known[name] = Manifest.model_validate(verdict["manifest"]) if "manifest" in verdict else None
        return self._known[name]

    def read(self, name: str, file: str, reader: Callable[[Path], T]) -> T:
        """What the reader makes of one file of a valid directory, on each rank.

        `ValueError` that names the directory where it is not valid.
        """
        manifest = self.valid(name)
        path = self.folder / name / file
        if manifest is None or file not in manifest.files:
            raise ValueError(
                f"{path} is missing or damaged, and nothing can take its place: restore {self.folder / name} from a "
                f"copy, or remove {self.folder} to begin anew"
            )

        def read() -> T:
            # Rank 0 has checked what it sees; another machine may see something else.
            if not self.ranks.main:
                check_file(self.folder / name, file, manifest)
            return reader(path)

        return self.ranks.each(read)

    def commit(
        self, name: str, parts: Callable[[], Mapping[str, Part]], about: Mapping[str, JsonValue] | None = None
    ) -> None:
        """Puts a directory in its place, with files of rank 0 alone; see `commit_each`."""
        self.commit_each(name, lambda: parts() if self.ranks.main else {}, about)

    def commit_each(
        self, name: str, parts: Callable[[], Mapping[str, Part]], about: Mapping[str, JsonValue] | None = None
    ) -> None:
        """Puts a directory in its place, with files of every rank. See `sparseflow.files.commit.commit`."""
        self._known[name] = commit(self.folder / name, parts, self.ranks, about)

    def remove(self, name: str) -> None:
        """Removes a directory, if it is there."""
        self._known.pop(name, None)
        self.ranks.first(lambda: remove(self.folder / name))

    def sweep(self) -> None:
        """Clears what a process that died has left; no other launch may be at work in this folder."""
        self.ranks.first(lambda: sweep(self.folder))


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("[!.]*") if path.is_dir()]


def _judge(directory: Path) -> dict[str, JsonValue] | None:
    if not directory.exists():
        return None
    try:
        return {"manifest": validate(directory).model_dump()}
    except CommitError as error:
        return {"fault": str(error)}
