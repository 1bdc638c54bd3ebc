"""MANIFEST.json of a store: what was committed last. Whatever it does not name does not count."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from sparseflow.atomic import atomic_write
from sparseflow.hardware.streaming.slots import room_for

NAME = "MANIFEST.json"
VERSION = 1
# Of a parameter's file, and of one that does not outlast the process.
SUFFIX, SCRATCH = ".tiles", ".scratch"

_Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """One parameter. index_sha256: of its index, hence of its mask; None where it has none.

    number, generation: which file it is; a new mask makes a new generation. slot: the one that counts. steps: updates
    so far. keys: of its optimizer state.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str
    shape: Annotated[tuple[_Count, ...], Field(strict=False)]
    nnz: _Count
    index_sha256: str | None
    keys: Annotated[tuple[str, ...], Field(strict=False)]
    number: _Count
    generation: _Count
    nbytes: _Count
    slot: Annotated[int, Field(ge=0, le=1)]
    steps: _Count

    @property
    def file(self) -> str:
        """Its name in the store's folder."""
        return f"{self.number:05d}-{self.generation}{SUFFIX}"


class Manifest(BaseModel):
    """A store. `step`: of the optimizer; `about`: JSON of whoever committed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    step: _Count
    about: dict[str, JsonValue]
    parameters: list[Record]

    @property
    def digest(self) -> str:
        """sha256 of names, shapes and masks: of which sparse model this is the store."""
        model = sorted((record.name, record.shape, record.index_sha256) for record in self.parameters)
        return hashlib.sha256(json.dumps(model, separators=(",", ":")).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Makes this what the folder holds, at once or not at all, and returns once it outlasts a power cut."""
        fields = {"version": VERSION, "digest": self.digest, **self.model_dump(mode="json")}
        text = json.dumps({**fields, "sha256": _sha256(fields)}, indent=1, sort_keys=True, allow_nan=False) + "\n"
        with room_for(len(text), folder / NAME), atomic_write(folder / NAME) as file:
            file.write(text.encode())


def read_manifest(folder: Path) -> Manifest:
    """What was committed last. `ValueError` where there is none, it is damaged, or of another version."""
    path = folder / NAME
    if not path.is_file():
        raise ValueError(f"{folder} is no store: expected a file {NAME} in it, found none; sf.stream makes one")
    try:
        fields = json.loads(path.read_text("utf-8"))
        recorded, version = fields.pop("sha256"), fields.pop("version")
        actual = _sha256({"version": version, **fields})
        digest = fields.pop("digest")
    # Not UTF-8, not JSON, or not an object of that kind.
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(_damaged(path, f"{type(error).__name__}: {error}")) from error
    if recorded != actual:
        raise ValueError(_damaged(path, f"expected the sha256 {actual}, got {recorded!r}"))
    if version != VERSION:
        raise ValueError(f"{path}: expected a store of version {VERSION}, got {version!r}, of another sparseflow")
    try:
        found = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ValueError(_damaged(path, f"{first['msg']} at {first['loc']}")) from error
    if found.digest != digest:
        raise ValueError(_damaged(path, f"expected the digest {found.digest}, got {digest!r}"))
    return found


def damaged(record: Record, why: str) -> str:
    """What an error says about the file of a parameter."""
    return _damaged(f"{record.file}, with {record.name!r},", why)


def _damaged(what: object, why: str) -> str:
    return f"{what} is damaged: {why}; restore the store from a copy"


def _sha256(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
