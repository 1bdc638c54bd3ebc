"""Chance instead of malice: flipped bytes, files cut short, fields swapped. A right result or SparseFormatError."""

import random
from pathlib import Path

import pytest
from raw_files import RawFile, assert_same, saved
from safetensors.torch import load_file

from sparseflow.files import SparseFormatError, load

ODD_VALUES = [
    0,
    1,
    -1,
    2,
    7,
    2**16,
    2**31,
    2**40,
    2**63,
    0.5,
    True,
    None,
    "",
    "F32",
    "BF16",
    "csr",
    "bitmask",
    "zeros",
]
ODD_VALUES += ["dense", "weights", "0" * 64, [], [1], [0, 8], [15], [5, 3], [2, 400], {}, {"x": 1}]


@pytest.mark.parametrize("format", ["compact", "dense"])
def test_every_flipped_byte_is_found_or_changes_nothing(tmp_path: Path, format: str) -> None:
    path = tmp_path / "ticket"
    saved(path, format)
    good, right = path.read_bytes(), load(path)
    # The blanks behind the header's JSON may become other blanks; nothing else may change unseen.
    unseen = 0
    dice = random.Random(0)
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= dice.randrange(1, 256)
        path.write_bytes(bad)
        try:
            loaded = load(path)
        except SparseFormatError:
            continue
        assert_same(loaded, right)
        unseen += 1
    assert unseen <= 8


@pytest.mark.parametrize("format", ["compact", "dense"])
def test_a_file_cut_at_any_length_is_refused(tmp_path: Path, format: str) -> None:
    path = tmp_path / "ticket"
    saved(path, format)
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(SparseFormatError):
            load(path)


@pytest.mark.parametrize("format", ["compact", "dense"])
def test_mutated_fields(tmp_path: Path, format: str) -> None:
    """One field of the header or of our JSON gets another value, with every sha256 made right again.

    What still loads must be a state that other readers of safetensors agree with, tensor by tensor.
    """
    path = tmp_path / "ticket"
    saved(path, format)
    dice = random.Random(1)
    accepted = 0
    for _ in range(1500):
        raw = RawFile.read(path) if _ == 0 else saved_again
        saved_again = raw
        mutant = _mutated(raw, dice)
        (tmp_path / "mutant").write_bytes(mutant)
        try:
            load(tmp_path / "mutant")
        except SparseFormatError:
            continue
        load_file(tmp_path / "mutant")
        accepted += 1
    assert 0 < accepted < 750
