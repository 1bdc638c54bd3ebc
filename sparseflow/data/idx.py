"""The IDX format of the MNIST family: four magic bytes, the size of each dimension, then the bytes."""

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class IdxFile:
    """A published file: its name, and the shape and sha256 that it must have once decompressed."""

    name: str
    shape: tuple[int, ...]
    sha256: str

    def read(self, folder: Path) -> Tensor:
        """The content as uint8. Raises ValueError, naming the file, where it is not the published one."""
        path = folder / self.name
        header = bytes([0, 0, 8, len(self.shape)]) + b"".join(size.to_bytes(4, "big") for size in self.shape)
        expected = len(header) + prod(self.shape)
        content = _decompress(path, limit=expected + 1)
        if content[: len(header)] != header:
            raise ValueError(f"{path}: expected an IDX header for bytes of shape {self.shape}; {_REMEDY}")
        if len(content) != expected:
            more_or_less = "more" if len(content) > expected else f"{len(content):,}"
            raise ValueError(f"{path}: expected {expected:,} bytes of content, got {more_or_less}; {_REMEDY}")
        if (digest := hashlib.sha256(content).hexdigest()) != self.sha256:
            raise ValueError(f"{path}: expected content of sha256 {self.sha256}, got {digest}; {_REMEDY}")
        return torch.frombuffer(content, dtype=torch.uint8, offset=len(header)).reshape(self.shape)


_REMEDY = "delete the file and fetch it again"


def _decompress(path: Path, limit: int) -> bytearray:
    try:
        with gzip.open(path) as stream:
            return bytearray(stream.read(limit))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; fetch it, or remove the folder") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated or not gzip ({error}); {_REMEDY}") from error
