"""Where the numbers of one parameter lie: its index, then two slots, each with values and optimizer state.

The committed slot is never written to. Reading goes through a shared map, so that what is read is never private memory
of the process; writing goes through `pwrite`, which raises where the disk is full (a map would end the process) and
need not read the page that it replaces.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sparseflow.hardware.streaming.tiles import VALUE

# What the kernel maps, drops and writes at once; a disk's own blocks are not larger.
PAGE = 4096
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What Linux reads ahead of one request for sure, in bytes: its least setting in use.
_AT_ONCE = 2**17


@dataclass(frozen=True)
class Layout:
    """Offsets in bytes. keys: of the optimizer state; every section is as long as the values."""

    index_bytes: int
    nnz: int
    keys: tuple[str, ...]

    @property
    def slot_bytes(self) -> int:
        """Of values and state."""
        return self._section_bytes * (1 + len(self.keys))

    @property
    def nbytes(self) -> int:
        """Of everything."""
        return max(PAGE, _pages(self.index_bytes) + 2 * self.slot_bytes)

    def offset(self, slot: int, key: str | None) -> int:
        """Where a section begins: the values (None) or a state."""
        section = 0 if key is None else 1 + self.keys.index(key)
        return _pages(self.index_bytes) + slot * self.slot_bytes + section * self._section_bytes

    @property
    def _section_bytes(self) -> int:
        return _pages(self.nnz * VALUE)


class Traffic:
    """Bytes read from a store and written to it, whether or not the disk had to move for them. For all threads."""

    def __init__(self) -> None:
        self.read = self.written = 0
        self._lock = threading.Lock()

    def add(self, read: int = 0, written: int = 0) -> None:
        """Counts so many more."""
        with self._lock:
            self.read += read
            self.written += written


class Pages(Protocol):
    """Bytes that stay where they are."""

    @property
    def in_memory(self) -> bool:
        """Whether no disk is behind it, so that views may be written to."""
        ...

    def view(self, offset: int, count: int, dtype: torch.dtype) -> Tensor:
        """The elements from an offset on, not copied; only to be read."""
        ...

    def read(self, offset: int, out: Tensor) -> None:
        """Copies the bytes from an offset on into a contiguous tensor, which it fills."""
        ...

    def write(self, offset: int, data: Tensor | bytes) -> None:
        """Replaces the bytes from an offset on."""
        ...

    def sync(self) -> None:
        """Returns once what was written outlasts a power cut."""
        ...

    def expect(self, offset: int, nbytes: int) -> None:
        """Has the system begin to read these bytes from the disk, if it has to."""
        ...

    def forget(self) -> None:
        """Has the system keep none of it in memory, as far as the disk has it already."""
        ...

    def remove(self) -> None:
        """Takes it away; views of it stay valid as long as they are held."""
        ...


class Memory:
    """In memory, zeros at first, which take none until they are written."""

    in_memory = True

    def __init__(self, nbytes: int) -> None:
        self._bytes = torch.zeros(nbytes, dtype=torch.uint8)

    def view(self, offset: int, count: int, dtype: torch.dtype) -> Tensor:
        return self._bytes[offset : offset + count * dtype.itemsize].view(dtype)

    def read(self, offset: int, out: Tensor) -> None:
        out.view(-1).copy_(self.view(offset, out.numel(), out.dtype))

    def write(self, offset: int, data: Tensor | bytes) -> None:
        if not data_bytes(data):
            return
        source = torch.frombuffer(bytearray(data), dtype=torch.uint8) if isinstance(data, bytes) else data
        self.view(offset, source.numel(), source.dtype).copy_(source)

    def sync(self) -> None:
        pass

    def expect(self, offset: int, nbytes: int) -> None:
        pass

    def forget(self) -> None:
        pass

    def remove(self) -> None:
        pass


class MappedFile:
    """In a file, whose size never changes."""

    in_memory = False

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = os.open(path, os.O_RDWR)
        try:
            self._map = mmap.mmap(descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(descriptor)
        # What is read is said before, so that the system need not guess, and read more than that.
        self._map.madvise(mmap.MADV_RANDOM)

    @classmethod
    def create(cls, path: Path, nbytes: int) -> MappedFile:
        """A new file of zeros whose place on the disk is reserved. OSError where there is none; then no file stays."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with room_for(nbytes, path):
                _reserve(descriptor, nbytes)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        return cls(path)

    def view(self, offset: int, count: int, dtype: torch.dtype) -> Tensor:
        # torch takes no empty buffer.
        if not count:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset)

    def read(self, offset: int, out: Tensor) -> None:
        # A copy out of the map would stop at each of its pages.
        filled: Any = out.view(-1).numpy()
        left = memoryview(filled).cast("B")
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            _read_what_is_asked_for(descriptor)
            while left:
                count = os.preadv(descriptor, [left], offset)
                if not count:
                    raise OSError(f"{self.path}: expected {len(left)} bytes more at {offset}, the file ends there")
                left, offset = left[count:], offset + count
        finally:
            os.close(descriptor)

    def write(self, offset: int, data: Tensor | bytes) -> None:
        source: Any = data if isinstance(data, bytes) else data.contiguous().numpy()
        left = memoryview(source).cast("B")
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            with room_for(len(left), self.path):
                while left:
                    written = os.pwrite(descriptor, left, offset)
                    left, offset = left[written:], offset + written
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def expect(self, offset: int, nbytes: int) -> None:
        stop = offset + nbytes
        if not nbytes:
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            for begin in range(offset // PAGE * PAGE, stop, _AT_ONCE):
                _announce(descriptor, begin, min(_AT_ONCE, stop - begin))
        finally:
            os.close(descriptor)

    def forget(self) -> None:
        # The kernel does not drop a page that is mapped somewhere.
        self._map.madvise(mmap.MADV_DONTNEED)
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            _drop(descriptor)
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def data_bytes(data: Tensor | bytes) -> int:
    """How many bytes that is."""
    return len(data) if isinstance(data, bytes) else data.nbytes


@contextmanager
def room_for(nbytes: int, path: Path) -> Iterator[None]:
    """While it is on, an OSError of a full disk says what there was no room for, how large it is and what is free."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            error.errno,
            f"no room for {nbytes} bytes in {path}: {error.strerror}; {shutil.disk_usage(path.parent).free} are free "
            "on its disk. What was committed before is intact: make room, and go on from there",
        ) from error


def chunks(count: int, size: int) -> Sequence[slice]:
    """Slices of at most `size` elements that make up `count`."""
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def _reserve(descriptor: int, nbytes: int) -> None:
    if sys.platform == "linux":
        os.posix_fallocate(descriptor, 0, nbytes)
    else:
        os.truncate(descriptor, nbytes)


def _read_what_is_asked_for(descriptor: int) -> None:
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def _announce(descriptor: int, offset: int, nbytes: int) -> None:
    # Unlike mmap.madvise, it lets other threads of Python run.
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_WILLNEED)


def _drop(descriptor: int) -> None:
    if sys.platform == "linux":
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE
