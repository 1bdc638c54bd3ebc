"""Files made by hand to do harm: each is refused by the rule it breaks, and by no other error."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from raw_files import RawFile, framed, saved, signed, spelt

from sparseflow.files import Rule, SparseFormatError, Weights, load, save
from sparseflow.masks.masks import Masks

Spoil = Callable[[RawFile], bytes | None]

FC_VALUES, FC_BITS = "fc.weight.sp.values", "fc.weight.sp.bitmask"
WIDE_INDPTR, WIDE_COLS = "wide.weight.sp.indptr", "wide.weight.sp.cols"


def content_of(raw: RawFile) -> dict[str, Any]:
    assert raw.content is not None
    return raw.content


def header_entry(key: str, value: object, name: str = "fc.bias") -> Spoil:
    return lambda raw: raw.header[name].__setitem__(key, value)


def content_entry(value: object, *keys: str) -> Spoil:
    def spoil(raw: RawFile) -> None:
        where = content_of(raw)
        for key in keys[:-1]:
            where = where[key]
        where[keys[-1]] = value

    return spoil


def without_content(*keys: str) -> Spoil:
    def spoil(raw: RawFile) -> None:
        where = content_of(raw)
        for key in keys[:-1]:
            where = where[key]
        del where[keys[-1]]

    return spoil


def other_bytes(name: str, data: bytes, shape: list[int] | None = None, dtype: str | None = None) -> Spoil:
    return lambda raw: raw.replace(name, data, shape, dtype)


def extra(name: str, dtype: str = "U8", shape: tuple[int, ...] = (1,), data: bytes = b"\0") -> Spoil:
    return lambda raw: raw.append(name, dtype, list(shape), data)


def our_text(change: Callable[[str], str]) -> Spoil:
    """Our JSON as a text, changed after it got its sha256."""

    def spoil(raw: RawFile) -> None:
        raw.metadata["sparseflow"] = change(signed(content_of(raw)))
        raw.content = None

    return spoil


def header_text(old: str, new: str) -> Spoil:
    def spoil(raw: RawFile) -> bytes:
        file = raw.to_bytes()
        header = file[8 : len(file) - len(raw.data)].decode()
        assert old in header
        return framed(header.replace(old, new, 1).encode()) + bytes(raw.data)

    return spoil


def huge_layer(raw: RawFile) -> None:
    """A small file for a terabyte: the dense layer would be (1, 2^38), of one kept weight."""
    content_of(raw)["masked"]["wide.weight"] |= {"shape": [1, 2**38], "nnz": 1, "kept_zeros": 0}
    raw.replace("wide.weight.sp.values", struct.pack("<f", 1), [1])
    raw.replace(WIDE_INDPTR, struct.pack("<2i", 0, 1), [2])
    raw.replace(WIDE_COLS, struct.pack("<i", 0), [1], "I32")


def overfull_row(raw: RawFile) -> None:
    content_of(raw)["masked"]["wide.weight"] |= {"nnz": 201, "kept_zeros": 0}
    raw.replace("wide.weight.sp.values", struct.pack("<201f", *[1.0] * 201), [201])
    raw.replace(WIDE_INDPTR, struct.pack("<3i", 0, 201, 201))
    raw.replace(WIDE_COLS, struct.pack("<201H", *range(200), 199), [201])


def stray_key(raw: RawFile) -> None:
    raw.metadata["sparsefloW"] = signed(content_of(raw))
    raw.content = None


def plain_with_parts(raw: RawFile) -> None:
    raw.content = None


def empty_csr(raw: RawFile) -> None:
    content_of(raw)["masked"]["wide.weight"] |= {"shape": [0, 5], "nnz": 0, "kept_zeros": 0}
    raw.replace("wide.weight.sp.values", b"", [0])
    raw.replace(WIDE_INDPTR, struct.pack("<i", 0), [1])
    raw.replace(WIDE_COLS, b"", [0])


HOSTILE: dict[str, tuple[Rule, Spoil]] = {
    "empty file": (Rule.HEADER_LENGTH, lambda raw: b""),
    "length only": (Rule.HEADER_LENGTH, lambda raw: b"\x08\0\0\0\0\0\0\0"),
    "header of 2^63 bytes": (Rule.HEADER_LENGTH, lambda raw: struct.pack("<Q", 2**63) + raw.to_bytes()[8:]),
    "header above the cap": (Rule.HEADER_LENGTH, lambda raw: framed(b"{" + b" " * 2**24 + b"}")),
    "header of an array": (Rule.HEADER_JSON, lambda raw: framed(b"[1]     ")),
    "header behind a blank": (Rule.HEADER_JSON, lambda raw: framed(b" {}     ")),
    "header not UTF-8": (Rule.HEADER_JSON, lambda raw: framed(b'{"\xff": 1}')),
    "header cut": (Rule.HEADER_JSON, lambda raw: framed(b'{"a": {')),
    "header 100000 deep": (Rule.HEADER_JSON, lambda raw: framed(b'{"a":' * 100_000)),
    "integer of 5000 digits": (Rule.HEADER_JSON, lambda raw: framed(b'{"a":' + b"1" * 5000 + b"}")),
    "key there twice": (Rule.HEADER_JSON, header_text('"fc.bias": {', '"fc.weight.sp.bitmask": {')),
    "metadata of numbers": (Rule.HEADER_JSON, lambda raw: raw.metadata.__setitem__("format", 1)),
    "metadata not an object": (Rule.HEADER_JSON, lambda raw: framed(b'{"__metadata__": []}')),
    "entry without offsets": (Rule.HEADER_JSON, lambda raw: raw.header["fc.bias"].pop("data_offsets")),
    "entry with another key": (Rule.HEADER_JSON, header_entry("pickle", "x")),
    "three offsets": (Rule.HEADER_JSON, header_entry("data_offsets", [0, 12, 12])),
    "float offset": (Rule.HEADER_JSON, header_entry("data_offsets", [0.0, 12.0])),
    "bool in a shape": (Rule.HEADER_JSON, header_entry("shape", [True, 3])),
    "100001 tensors": (
        Rule.TENSOR_COUNT,
        lambda raw: framed(json.dumps({str(i): 0 for i in range(100_001)}).encode()),
    ),
    "control character in a name": (Rule.NAME, extra("fc\x1b[2J")),
    "name of 600 characters": (Rule.NAME, extra("a" * 600)),
    "empty name": (Rule.NAME, extra("")),
    "unknown dtype": (Rule.DTYPE, header_entry("dtype", "pickle")),
    "dtype of a list": (Rule.DTYPE, header_entry("dtype", ["F32"])),
    "nine dimensions": (Rule.SHAPE, header_entry("shape", [3, 1, 1, 1, 1, 1, 1, 1, 1])),
    "negative shape": (Rule.SHAPE, header_entry("shape", [-3])),
    "2^62 rows of nothing": (Rule.SHAPE, header_entry("shape", [2**62, 0])),
    "shape that overflows": (Rule.SHAPE, header_entry("shape", [2**32, 2**32])),
    "shape above the data": (Rule.OFFSETS, header_entry("shape", [4])),
    "overlap": (Rule.OFFSETS, header_entry("data_offsets", [0, 12])),
    "end before start": (Rule.OFFSETS, header_entry("data_offsets", [12, 0])),
    "negative offset": (Rule.OFFSETS, header_entry("data_offsets", [-12, 0])),
    "hole": (Rule.OFFSETS, lambda raw: (raw.header.pop("fc.bias"), raw.to_bytes())[1]),
    "bytes behind the data": (Rule.FILE_SIZE, lambda raw: raw.to_bytes() + b"\0"),
    "data cut": (Rule.FILE_SIZE, lambda raw: raw.to_bytes()[:-1]),
    "our JSON under another key": (Rule.METADATA_KEYS, stray_key),
    "a third metadata key": (Rule.METADATA_KEYS, lambda raw: raw.metadata.__setitem__("x", "y")),
    "another format": (Rule.METADATA_KEYS, lambda raw: raw.metadata.__setitem__("format", "tf")),
    "parts without our JSON": (Rule.PARTS, plain_with_parts),
    "our JSON cut": (Rule.METADATA_JSON, our_text(lambda text: text[:-1])),
    "our JSON an array": (Rule.METADATA_JSON, our_text(lambda text: "[]")),
    "our JSON too deep": (Rule.METADATA_JSON, our_text(lambda text: '{"a":' * 100_000)),
    "our JSON with blanks": (Rule.METADATA_JSON, our_text(lambda text: text.replace(",", ", ", 1))),
    "our JSON with a key twice": (Rule.METADATA_JSON, our_text(lambda text: '{"format":"dense",' + text[1:])),
    "infinity in our JSON": (Rule.METADATA_JSON, our_text(lambda text: text.replace("0.5", "1e999"))),
    "round changed": (Rule.METADATA_SHA256, our_text(lambda text: text.replace('"round":2', '"round":3'))),
    "no sha256 of our JSON": (
        Rule.METADATA_SHA256,
        our_text(lambda text: spelt({k: v for k, v in json.loads(text).items() if k != "sha256"})),
    ),
    "unknown version": (Rule.METADATA_SCHEMA, content_entry("sparseflow.v2", "version")),
    "unknown kind": (Rule.METADATA_SCHEMA, content_entry("model", "kind")),
    "unknown key": (Rule.METADATA_SCHEMA, content_entry(1, "x")),
    "unknown encoding": (
        Rule.METADATA_SCHEMA,
        content_entry("reader.py:decode", "masked", "fc.weight", "encoding"),
    ),
    "encoding of a dense file": (
        Rule.METADATA_SCHEMA,
        content_entry("zeros", "masked", "fc.weight", "encoding"),
    ),
    "nnz of a float": (Rule.METADATA_SCHEMA, content_entry(7.0, "masked", "fc.weight", "nnz")),
    "nnz of a bool": (Rule.METADATA_SCHEMA, content_entry(True, "masked", "fc.weight", "nnz")),
    "negative nnz": (Rule.METADATA_SCHEMA, content_entry(-1, "masked", "fc.weight", "nnz")),
    "masked scalar": (Rule.METADATA_SCHEMA, content_entry([], "masked", "fc.weight", "shape")),
    "masked shape above the limit": (
        Rule.METADATA_SCHEMA,
        content_entry([2**30] * 3, "masked", "fc.weight", "shape"),
    ),
    "no provenance": (Rule.METADATA_SCHEMA, without_content("provenance")),
    "plan of a list": (Rule.METADATA_SCHEMA, content_entry([], "plan")),
    "sha256 not hex": (Rule.METADATA_SCHEMA, content_entry("x" * 64, "stored", "fc.bias", "sha256")),
    "masked name of a part": (
        Rule.METADATA_SCHEMA,
        content_entry({"encoding": "csr", "shape": [1], "nnz": 0, "kept_zeros": 0}, "masked", "a.sp.values"),
    ),
    "tensor not in our JSON": (Rule.PARTS, without_content("stored", "fc.bias")),
    "tensor only in our JSON": (
        Rule.PARTS,
        lambda raw: content_of(raw)["stored"].update(x=content_of(raw)["stored"]["fc.bias"]),
    ),
    "masked tensor dropped": (Rule.PARTS, without_content("masked", "fc.weight")),
    "masked tensor without parts": (
        Rule.PARTS,
        content_entry({"encoding": "csr", "shape": [1], "nnz": 0, "kept_zeros": 0}, "masked", "ghost"),
    ),
    "masked tensor stored dense too": (Rule.PARTS, extra("fc.weight", "F32", (3, 5), bytes(60))),
    "both encodings": (Rule.PARTS, extra("fc.weight.sp.cols", "U16", (7,), bytes(14))),
    "bitmask called csr": (Rule.PARTS, content_entry("csr", "masked", "fc.weight", "encoding")),
    "csr of an empty tensor": (Rule.PARTS, empty_csr),
    "other dtype in our JSON": (Rule.DTYPE, content_entry("I32", "stored", "fc.bias", "dtype")),
    "other shape in our JSON": (Rule.SHAPE, content_entry([3, 1], "stored", "fc.bias", "shape")),
    "integer values": (Rule.DTYPE, other_bytes(FC_VALUES, bytes(28), dtype="I32")),
    "signed columns": (Rule.DTYPE, other_bytes(WIDE_COLS, struct.pack("<3h", 3, 199, 0), dtype="I16")),
    "terabyte from a kilobyte": (Rule.DENSE_BYTES, huge_layer),
    "payload changed": (Rule.SHA256, lambda raw: raw.tensor("fc.bias").__setitem__(0, 1)),
    "bool of 2": (Rule.BOOL, other_bytes("bn.flags", b"\2\0\1")),
    "NaN in values": (Rule.FINITE, other_bytes(FC_VALUES, struct.pack("<7f", *[1.0] * 6, float("nan")))),
    "infinite bias": (Rule.FINITE, other_bytes("fc.bias", struct.pack("<3f", 1, 2, float("-inf")))),
    "bitmask too short": (Rule.BITMASK_LENGTH, other_bytes(FC_BITS, b"\x7f", [1])),
    "bitmask by rows": (Rule.BITMASK_LENGTH, other_bytes(FC_BITS, b"\x15\x02\x0b", [3, 1])),
    "pad bit set": (Rule.PAD_BITS, other_bytes(FC_BITS, bytes([0b01010101, 0b10101100]))),
    "one bit less": (Rule.NNZ, other_bytes(FC_BITS, bytes([0b01010101, 0b00100100]))),
    "one value for all bits": (Rule.NNZ, other_bytes(FC_VALUES, struct.pack("<f", 1), [1])),
    "values by rows": (Rule.NNZ, other_bytes(FC_VALUES, struct.pack("<7f", *[1.0] * 7), [7, 1])),
    "wrong number of kept zeros": (Rule.NNZ, content_entry(2, "masked", "fc.weight", "kept_zeros")),
    "more kept zeros than kept": (Rule.NNZ, content_entry(9, "masked", "fc.weight", "kept_zeros")),
    "first row pointer not 0": (Rule.INDPTR, other_bytes(WIDE_INDPTR, struct.pack("<3i", 1, 2, 3))),
    "last row pointer not nnz": (Rule.INDPTR, other_bytes(WIDE_INDPTR, struct.pack("<3i", 0, 2, 4))),
    "row pointers fall": (Rule.INDPTR, other_bytes(WIDE_INDPTR, struct.pack("<3i", 0, 5, 3))),
    "row pointers of another shape": (
        Rule.INDPTR,
        other_bytes(WIDE_INDPTR, struct.pack("<4i", 0, 1, 2, 3), [4]),
    ),
    "more columns than a row has": (Rule.INDPTR, overfull_row),
    "column outside": (Rule.COLS, other_bytes(WIDE_COLS, struct.pack("<3H", 3, 200, 0))),
    "columns fall": (Rule.COLS, other_bytes(WIDE_COLS, struct.pack("<3H", 199, 3, 0))),
    "column twice": (Rule.COLS, other_bytes(WIDE_COLS, struct.pack("<3H", 3, 3, 0))),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_is_refused_by_its_rule(tmp_path: Path, case: str) -> None:
    rule, spoil = HOSTILE[case]
    path = tmp_path / "ticket"
    raw = saved(path)
    made = spoil(raw)
    path.write_bytes(made if isinstance(made, bytes) else raw.to_bytes())
    with pytest.raises(SparseFormatError) as caught:
        load(path)
    assert caught.value.rule is rule, str(caught.value)
    assert str(path) in str(caught.value)


def test_every_rule_has_a_hostile_file() -> None:
    assert {rule for rule, _ in HOSTILE.values()} == set(Rule)


def test_a_file_put_together_again_loads(tmp_path: Path) -> None:
    # The tool that spoils the files above does not spoil them by itself.
    raw = saved(tmp_path / "ticket")
    (tmp_path / "ticket").write_bytes(raw.to_bytes())
    load(tmp_path / "ticket")


def test_a_negative_column_is_refused(tmp_path: Path) -> None:
    # Only columns wider than 16 bits have a sign; -1 in the second row would be a place of the first.
    path = tmp_path / "wide"
    weight = torch.zeros(2, 65537)
    weight[0, 0] = weight[1, 0] = 1.0
    save(Weights({"w": weight}, Masks({"w": weight != 0}), {}), path, format="compact")
    raw = RawFile.read(path)
    raw.replace("w.sp.cols", struct.pack("<2i", 0, -1))
    path.write_bytes(raw.to_bytes())
    with pytest.raises(SparseFormatError, match="rule 'cols': expected columns from 0 to 65536, got -1 to 0"):
        load(path)


def test_a_dense_file_with_another_number_of_nonzeros_is_refused(tmp_path: Path) -> None:
    raw = saved(tmp_path / "ticket", format="dense")
    raw.tensor("fc.weight")[:4] = bytes(4)
    raw.rehash()
    (tmp_path / "ticket").write_bytes(raw.to_bytes())
    with pytest.raises(SparseFormatError, match=r"'fc\.weight' breaks the rule 'nnz'"):
        load(tmp_path / "ticket")


def test_the_error_names_file_tensor_and_rule(tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    raw = saved(path)
    raw.replace(WIDE_COLS, struct.pack("<3H", 3, 200, 0))
    path.write_bytes(raw.to_bytes())
    with pytest.raises(SparseFormatError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}: tensor 'wide.weight' breaks the rule 'cols': expected columns from 0 to 199, got 0 to 200; "
        "get the file again"
    )
