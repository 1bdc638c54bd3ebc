"""Plain safetensors, read and written: an 8-byte little-endian length, a JSON header, the tensors' bytes.

The safetensors library can write these files too, but it puts the metadata in an order that differs between
runs, while a ticket must have one sha256; and it reads by mapping the file, so that bytes may change after
their sha256 was checked. What is written here loads with the library.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import Protocol

import torch
from torch import Tensor

from sparseflow.files.ticket import tensor_bytes
from sparseflow.files.validate import MAX_HEADER_BYTES, MAX_TENSORS, Place, Rule, name_fault, shape_fault


class Sink(Protocol):
    """What takes bytes: a file, or something that hashes them on the way to one."""

    def write(self, data: bytes | memoryview, /) -> object: ...


DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype by the file's name for it, its shape, where its bytes start."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_container(file: Sink, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes CPU tensors. Equal arguments give equal bytes.

    The order is widest dtype first, so that all are aligned, then by name.

    Raises ValueError if the header or the number of tensors is above what `read_header` accepts.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    for name in order:
        end = offset + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {
            "dtype": DTYPE_NAMES[tensors[name].dtype],
            "shape": shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES or len(tensors) > MAX_TENSORS:
        raise ValueError(
            f"expected at most {MAX_TENSORS} tensors and a header of {MAX_HEADER_BYTES} bytes, "
            f"got {len(tensors)} tensors and {len(text)} bytes; save fewer tensors or less metadata to a file"
        )
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(tensor_bytes(tensors[name]))


def read_header(file: BufferedReader, place: Place) -> tuple[dict[str, Entry], dict[str, str]]:
    """Returns the entries of the tensors and the metadata of a file open at its start.

    Everything that the safetensors format demands of a header is checked, and the limits of `validate`: no
    tensor overlaps another, no byte belongs to none, shapes and sizes agree. Reads no tensor.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        limit = f"between 2 and {MAX_HEADER_BYTES} bytes, within the {size} bytes of the file"
        place.fail(Rule.HEADER_LENGTH, f"expected a header of {limit}, got {length}")
    header = _parse_json_object(file.read(length), place)
    metadata = _check_metadata(header.pop("__metadata__", {}), place)
    if len(header) > MAX_TENSORS:
        place.fail(Rule.TENSOR_COUNT, f"expected at most {MAX_TENSORS} tensors, got {len(header)}")
    ends: dict[str, int] = {}
    entries: dict[str, Entry] = {}
    for name, raw in header.items():
        if fault := name_fault(name):
            place.at(name).fail(Rule.NAME, fault)
        entries[name], ends[name] = _check_entry(raw, 8 + length, place.at(name))
    _check_layout(entries, ends, 8 + length, size, place)
    return entries, metadata


@dataclass(frozen=True)
class StoredTensors:
    """The tensors of an open file, read one by one.

    `sha256` maps names to what was recorded; it is empty for a plain file.
    """

    file: BufferedReader
    entries: Mapping[str, Entry]
    sha256: Mapping[str, str]
    place: Place

    def read(self, name: str) -> Tensor:
        """Returns one tensor in memory of its own, so that nothing can change it once it is checked.

        Raises SparseFormatError for a wrong sha256, for NaN and infinity, and for a bool that is neither 0
        nor 1.
        """
        entry, place = self.entries[name], self.place.at(name)
        data = torch.empty(entry.nbytes, dtype=torch.uint8)
        self.file.seek(entry.start)
        if entry.nbytes and self.file.readinto(data.numpy().data) != entry.nbytes:
            place.fail(Rule.FILE_SIZE, f"expected {entry.nbytes} bytes of data, the file ended before them")
        if self.sha256:
            place.expect(Rule.SHA256, "a sha256 of", self.sha256[name], hashlib.sha256(data.numpy().data).hexdigest())
        if entry.dtype == "BOOL" and entry.nbytes and int(data.max()) > 1:
            place.fail(Rule.BOOL, "expected bytes 0 and 1 in a tensor of dtype BOOL, got another")
        tensor = data.view(DTYPES[entry.dtype]).reshape(entry.shape)
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            place.fail(Rule.FINITE, "expected finite numbers, got NaN or infinity")
        return tensor


def _parse_json_object(text: bytes, place: Place) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise ValueError("a key is there twice")
        return keys

    if not text.startswith(b"{"):
        place.fail(Rule.HEADER_JSON, "expected a header that starts with '{'")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    # ValueError is bad UTF-8, bad JSON, a number of too many digits, or a key that is there twice.
    except (ValueError, RecursionError) as error:
        place.fail(Rule.HEADER_JSON, f"expected a JSON object, got {error}")
    assert isinstance(header, dict)
    return header


def _check_metadata(raw: object, place: Place) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        place.fail(Rule.HEADER_JSON, "expected '__metadata__' to be an object of strings")
    return raw


def _check_entry(raw: object, data_start: int, place: Place) -> tuple[Entry, int]:
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
        place.fail(Rule.HEADER_JSON, "expected an object of dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        place.fail(Rule.DTYPE, f"expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if not _is_integers(shape) or not _is_integers(offsets) or len(offsets) != 2:
        place.fail(
            Rule.HEADER_JSON,
            "expected lists of integers for shape and data_offsets, two of them for the latter",
        )
    if fault := shape_fault(shape):
        place.fail(Rule.SHAPE, fault)
    entry = Entry(dtype, tuple(shape), data_start + offsets[0])
    return entry, data_start + offsets[1]


def _is_integers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _check_layout(entries: dict[str, Entry], ends: dict[str, int], data_start: int, size: int, place: Place) -> None:
    position = data_start
    for name in sorted(entries, key=lambda name: (entries[name].start, ends[name])):
        entry = entries[name]
        place.at(name).expect(Rule.OFFSETS, "data to start at byte", position, entry.start)
        place.at(name).expect(Rule.OFFSETS, "data to end at byte", entry.start + entry.nbytes, ends[name])
        position = ends[name]
    place.expect(Rule.FILE_SIZE, "a file size in bytes of", position, size)
