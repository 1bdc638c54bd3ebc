"""The rules that a file must keep before anything of it is used, and the one error that names them."""

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000
MAX_DIMS = 8
MAX_ELEMENTS = 2**40

# What a name of a parameter may consist of: printable ASCII, so that no name can play tricks on a terminal.
_NAME = re.compile(r"[ -~]{1,512}", re.ASCII)


class Rule(StrEnum):
    """The rules, by the name that an error carries."""

    HEADER_LENGTH = "header-length"
    HEADER_JSON = "header-json"
    TENSOR_COUNT = "tensor-count"
    NAME = "name"
    DTYPE = "dtype"
    SHAPE = "shape"
    OFFSETS = "offsets"
    FILE_SIZE = "file-size"
    METADATA_KEYS = "metadata-keys"
    METADATA_JSON = "metadata-json"
    METADATA_SCHEMA = "metadata-schema"
    METADATA_SHA256 = "metadata-sha256"
    PARTS = "parts"
    DENSE_BYTES = "dense-bytes"
    SHA256 = "sha256"
    BOOL = "bool"
    FINITE = "finite"
    BITMASK_LENGTH = "bitmask-length"
    PAD_BITS = "pad-bits"
    NNZ = "nnz"
    INDPTR = "indptr"
    COLS = "cols"


class SparseFormatError(ValueError):
    """A file that breaks a rule of the format. Has `path`, `tensor` (a name or None), `rule` and `detail`."""

    def __init__(self, path: str, tensor: str | None, rule: Rule, detail: str) -> None:
        super().__init__(path, tensor, rule, detail)
        self.path, self.tensor, self.rule, self.detail = path, tensor, rule, detail

    def __str__(self) -> str:
        where = self.path if self.tensor is None else f"{self.path}: tensor {self.tensor!r}"
        advice = "get the file again" if self.rule is not Rule.DENSE_BYTES else "raise max_dense_bytes if it is meant"
        return f"{where} breaks the rule '{self.rule}': {self.detail}; {advice}"


@dataclass(frozen=True)
class Place:
    """A file, or one tensor in it: what a check names when it fails."""

    path: str
    tensor: str | None = None

    def at(self, tensor: str) -> "Place":
        """The place of one tensor of the same file."""
        return Place(self.path, tensor)

    def fail(self, rule: Rule, detail: str) -> NoReturn:
        raise SparseFormatError(self.path, self.tensor, rule, detail)

    def expect(self, rule: Rule, what: str, expected: object, got: object) -> None:
        """Raise SparseFormatError unless the two are equal."""
        if expected != got:
            self.fail(rule, f"expected {what} {expected}, got {got}")


def name_fault(name: str) -> str | None:
    """Why a tensor may not have this name, or None."""
    if name == "__metadata__":
        return "the name '__metadata__' belongs to the file format"
    if not _NAME.fullmatch(name):
        return "expected a name of 1 to 512 printable ASCII characters"
    return None


def shape_fault(shape: list[int]) -> str | None:
    """Why a tensor may not have this shape, or None. Exact, however large the numbers are."""
    if len(shape) > MAX_DIMS:
        return f"expected at most {MAX_DIMS} dimensions, got {len(shape)}"
    # A zero elsewhere in the shape must not hide a size that later arithmetic cannot hold.
    if any(size < 0 for size in shape) or math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        return f"expected sizes of at least 0 and at most {MAX_ELEMENTS} elements, got {shape}"
    return None
