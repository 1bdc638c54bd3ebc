"""A store: the values and the optimizer state of every parameter of a model, in a folder or in memory.

What it holds changes at once; what it would hold after a crash changes with `commit` alone, and as a whole. It works in
a folder of its own, on POSIX systems:

MANIFEST.json     what was committed last: which file and which slot of each parameter counts, and the step
00003-0.tiles     a parameter: its index, and two slots; the last number is one more after each change of its mask

Files that the manifest does not name are left by a process that died, and are swept when the store is opened.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from pydantic import JsonValue
from torch import Tensor

from sparseflow.atomic import sync_directory
from sparseflow.hardware.streaming.slots import PAGE, MappedFile, Memory, Pages, Traffic
from sparseflow.hardware.streaming.store_folder import check_model, lock, mapped, sweep
from sparseflow.hardware.streaming.store_making import check_weight, new_parameter, with_mask
from sparseflow.hardware.streaming.store_manifest import NAME, SCRATCH, Manifest, read_manifest
from sparseflow.hardware.streaming.store_parameter import Entry, StoredParameter
from sparseflow.hardware.streaming.updates import Rule


class Store:
    """What `create` or `open` gives. `traffic`: bytes read and written so far; `about`: JSON that goes with a commit.

    Reading may be done by several threads; changes are for one of them, of no parameter that another is reading.
    """

    def __init__(self, folder: Path | None, step: int, about: Mapping[str, JsonValue]) -> None:
        self.folder, self.about, self.traffic = folder, dict(about), Traffic()
        self._step = self._committed_step = step
        self._now: dict[str, StoredParameter] = {}
        # What the last commit holds, where a new mask has come since.
        self._before: dict[str, StoredParameter] = {}
        self._scratches = 0
        self._unlock = None if folder is None else weakref.finalize(self, os.close, lock(folder))

    @classmethod
    def create(
        cls, folder: Path | None, entries: Iterable[Entry], about: Mapping[str, JsonValue] | None = None
    ) -> Self:
        """A new store of these parameters, taken one at a time, and committed; in memory where there is no folder.

        `ValueError` where there is a store already or where an entry does not fit its shape, OSError where there is no
        room; neither leaves anything.
        """
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder, 0, about or {})
        try:
            made._begin()
            for number, entry in enumerate(entries):
                if entry.name in made._now:
                    raise ValueError(f"expected every parameter once, got {entry.name!r} again")
                made._now[entry.name] = new_parameter(entry, number, made._make, made.traffic)
            made.commit()
        except BaseException:
            made._abandon()
            raise
        return made

    @classmethod
    def open(cls, folder: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Self:
        """The store in a folder as it was committed last. `shapes`: the model's, if it is to be the store of one.

        `ValueError` where there is none, for one that is damaged, truncated, of another version or of another model,
        or while another process has it open.
        """
        # Read first: there is nothing to lock where nothing is.
        read_manifest(folder)
        found = cls(folder, 0, {})
        try:
            manifest = read_manifest(folder)
            if shapes is not None:
                check_model(folder, manifest, shapes)
            found._step = found._committed_step = manifest.step
            found.about = dict(manifest.about)
            for record in manifest.parameters:
                pages = mapped(folder, record)
                found._now[record.name] = StoredParameter(record, record, pages, found.traffic)
            sweep(folder, manifest.parameters)
        except BaseException:
            found.close()
            raise
        return found

    @property
    def names(self) -> Sequence[str]:
        """Of the parameters, in the order in which they came."""
        return list(self._now)

    @property
    def step(self) -> int:
        """How many steps the optimizer has done."""
        return self._step

    @property
    def digest(self) -> str:
        """sha256 of names, shapes and masks as they are now."""
        return self._manifest({}).digest

    def parameter(self, name: str) -> StoredParameter:
        """What there is of a parameter. `KeyError` for a name that the store does not have."""
        return self._now[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the dense parameter."""
        return self._now[name].shape

    def nnz(self, name: str) -> int:
        """Kept weights."""
        return self._now[name].nnz

    def mask(self, name: str) -> Tensor:
        """True = kept."""
        return self._now[name].mask()

    def keys(self, name: str) -> tuple[str, ...]:
        """Of the optimizer state beside the values."""
        return self._now[name].keys

    def steps(self, name: str) -> int:
        """How many updates a parameter has had."""
        return self._now[name].steps

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """The dense parameter, zeros at the pruned places; in `out` if given, contiguous and float32."""
        return self._now[name].read(torch.empty(self.shape(name)) if out is None else out)

    def values(self, name: str) -> Tensor:
        """The kept values in canonical order: a view until they change, only to be read."""
        return self._now[name].section()

    def state(self, name: str, key: str) -> Tensor:
        """The optimizer state beside the values: a view like them. `ValueError` that lists the keys for another."""
        self._check_key(name, key)
        return self._now[name].section(key)

    def gather(self, name: str, dense: Tensor) -> Tensor:
        """What a tensor of the parameter's shape has at the kept places, in canonical order; perhaps a view."""
        return self._now[name].gather(dense)

    def write(self, name: str, weight: Tensor) -> None:
        """Replaces the kept values by those of a dense weight; the optimizer state stays."""
        check_weight(name, self.shape(name), weight)
        self._now[name].write(weight)

    def put(self, name: str, values_Z: Tensor, key: str | None = None) -> None:
        """Replaces the values (None) or a state by these, in canonical order."""
        if key is not None:
            self._check_key(name, key)
        check_weight(name, (self.nnz(name),), values_Z)
        self._now[name].put([values_Z], key)

    def set_steps(self, name: str, steps: int) -> None:
        """Sets how many updates a parameter has had, as where an optimizer's state is loaded."""
        self._now[name].steps = steps

    def remask(self, name: str, mask: Tensor | None) -> None:
        """Changes the mask: what stays keeps value and state, what comes back begins with zeros. None: keeps all.

        Until the next commit, the disk holds both.
        """
        old = self._now[name]
        self._now[name] = with_mask(old, mask, self._make, self.traffic)
        if name in self._before:
            old.pages.remove()
        else:
            self._before[name] = old

    def masked(self, name: str) -> bool:
        """Whether it has a mask, be it one that keeps all."""
        return self._now[name].record.index_sha256 is not None

    def update(self, name: str, gradient_Z: Tensor, rule: Rule) -> None:
        """One step of an optimizer on the kept values. `ValueError` for a rule with other state than the store has."""
        keys = self._now[name].keys
        if rule.keys != keys:
            raise ValueError(
                f"{name!r}: the store keeps the optimizer state {keys}, and {type(rule).__name__} needs {rule.keys}; "
                "make a new store for it"
            )
        check_weight(f"the gradient of {name}", (self.nnz(name),), gradient_Z)
        self._now[name].update(gradient_Z, rule)

    def verify(self) -> None:
        """Reads the index of every parameter. `ValueError` that names one which is not what was written."""
        for parameter in self._now.values():
            parameter.verify()

    def end_step(self) -> None:
        """Counts a step of the optimizer."""
        self._step += 1

    def commit(self, about: Mapping[str, JsonValue] | None = None) -> None:
        """Makes what the store holds now what it will hold after a crash; `about` goes with it, if given.

        OSError as the system raises it, after which it may be tried again. `ValueError` where a change was cut short.
        """
        for name, parameter in self._now.items():
            if parameter.torn:
                raise ValueError(f"a change of {name!r} was cut short: roll the store back, or open it again")
        about = self.about if about is None else dict(about)
        if self.folder is not None:
            self._write_down(self.folder, about)
        self._settle(about)

    def rollback(self) -> None:
        """Goes back to the last commit."""
        for name, old in self._before.items():
            self._now[name].pages.remove()
            self._now[name] = old
        self._before = {}
        self._step = self._committed_step
        for parameter in self._now.values():
            parameter.roll_back()

    def room(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros beside the parameters, on the disk if they are there; gone once nobody holds it."""
        count = math.prod(shape)
        pages = self.scratch(max(PAGE, count * dtype.itemsize))
        pages.remove()
        return pages.view(0, count, dtype).view(tuple(shape))

    def scratch(self, nbytes: int) -> Pages:
        """Bytes beside the parameters, on the disk if they are there, for what does not outlast the process."""
        self._scratches += 1
        return self._make(f"{self._scratches:05d}{SCRATCH}", nbytes)

    def forget(self, names: Iterable[str]) -> None:
        """Has the system drop these parameters from memory, which reads them from the disk when they are next used."""
        for name in names:
            self._now[name].pages.forget()

    def close(self) -> None:
        """Lets another process open it. What was not committed is lost."""
        if self._unlock is not None:
            self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        if self.folder is not None:
            if (self.folder / NAME).exists():
                raise ValueError(f"{self.folder} holds a store already: open it, remove it, or choose another folder")
            sweep(self.folder, [])

    def _abandon(self) -> None:
        # Whatever has a parameter is new, and so is the manifest then.
        if self.folder is not None and self._now:
            (self.folder / NAME).unlink(missing_ok=True)
        for parameter in self._now.values():
            parameter.pages.remove()
        self.close()

    def _write_down(self, folder: Path, about: dict[str, JsonValue]) -> None:
        for parameter in self._now.values():
            if parameter.record != parameter.committed:
                parameter.pages.sync()
        sync_directory(folder)
        manifest = self._manifest(about)
        try:
            manifest.write(folder)
        except BaseException:
            # It may have taken its place before, and what it names must not be written to then.
            if (folder / NAME).is_file() and read_manifest(folder) == manifest:
                self._settle(about)
            raise

    def _settle(self, about: dict[str, JsonValue]) -> None:
        self._committed_step, self.about = self._step, about
        for parameter in self._now.values():
            parameter.committed = parameter.record
        for old in self._before.values():
            old.pages.remove()
        self._before = {}

    def _make(self, file: str, nbytes: int) -> Pages:
        return Memory(nbytes) if self.folder is None else MappedFile.create(self.folder / file, nbytes)

    def _manifest(self, about: dict[str, JsonValue]) -> Manifest:
        records = [parameter.record for parameter in self._now.values()]
        return Manifest(step=self._step, about=about, parameters=records)

    def _check_key(self, name: str, key: str) -> None:
        keys = self._now[name].keys
        if key not in keys:
            raise ValueError(f"{name!r} has no optimizer state {key!r}; available: {', '.join(keys) or 'none'}")
