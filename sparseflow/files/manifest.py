"""MANIFEST.json: which files a committed directory has, their sizes and sha256, and what they are about."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

NAME = "MANIFEST.json"
VERSION = 1
# Far above any manifest of ours, far below what would fill the memory.
_MAX_BYTES = 64 * 2**20


class CommitRule(StrEnum):
    """The rules that a committed directory keeps, by the name that an error carries."""

    DIRECTORY = "directory"
    MANIFEST = "manifest"
    MANIFEST_SHA256 = "manifest-sha256"
    VERSION = "version"
    MISSING = "missing"
    EXTRA = "extra"
    SIZE = "size"
    SHA256 = "sha256"


class CommitError(ValueError):
    """A directory that is not what was committed. Has `directory`, `file` (its name, or None), `rule`, `detail`."""

    def __init__(self, directory: Path, file: str | None, rule: CommitRule, detail: str) -> None:
        super().__init__(directory, file, rule, detail)
        self.directory, self.file, self.rule, self.detail = directory, file, rule, detail

    def __str__(self) -> str:
        where = self.directory if self.file is None else self.directory / self.file
        return f"{where} breaks the rule '{self.rule}': {self.detail}"


class Entry(BaseModel):
    """One file: its size in bytes and its sha256."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """A committed directory. `files` by name, relative with slashes; `about` is JSON of whoever committed it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    files: dict[str, Entry]
    about: dict[str, JsonValue]

    def to_text(self) -> str:
        """The content of MANIFEST.json: with a sha256 over the rest, so that no bit of it flips unnoticed."""
        fields = {"version": VERSION, **self.model_dump()}
        return json.dumps({**fields, "sha256": _sha256(fields)}, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a committed directory. `CommitError` where it is not there, damaged, or of another version."""
    text = _read_text(directory)
    try:
        fields = json.loads(text)
        recorded, version = fields.pop("sha256"), fields.pop("version")
        actual = _sha256({"version": version, **fields})
    # Not JSON, or not an object of that kind.
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError) as error:
        _fail(directory, CommitRule.MANIFEST, f"expected a manifest in JSON, got {type(error).__name__}: {error}")
    if recorded != actual:
        _fail(directory, CommitRule.MANIFEST_SHA256, f"expected the sha256 {actual}, got {recorded!r}")
    if version != VERSION:
        _fail(directory, CommitRule.VERSION, f"expected version {VERSION}, got {version!r}, of another sparseflow")
    try:
        found = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        _fail(directory, CommitRule.MANIFEST, f"{first['msg']} at {first['loc']}")
    if found.to_text() != text:
        _fail(directory, CommitRule.MANIFEST, "expected the spelling that it was written with")
    return found


def _read_text(directory: Path) -> str:
    if not directory.is_dir():
        raise CommitError(directory, None, CommitRule.DIRECTORY, "expected a directory, found none")
    path = directory / NAME
    if not path.is_file():
        _fail(directory, CommitRule.MISSING, "expected this file, found none")
    if path.stat().st_size > _MAX_BYTES:
        _fail(directory, CommitRule.MANIFEST, f"expected at most {_MAX_BYTES} bytes")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        _fail(directory, CommitRule.MANIFEST, f"expected UTF-8, got {error}")


def _fail(directory: Path, rule: CommitRule, detail: str) -> NoReturn:
    raise CommitError(directory, NAME, rule, detail)


def _sha256(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
