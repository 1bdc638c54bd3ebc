"""Chance instead of malice: bytes flipped, files cut short, fields changed. Loaded rightly or refused."""

import copy
import os
import random
from pathlib import Path
from typing import Any

import pytest
from raw_files import RawFile, assert_same, saved
from safetensors.torch import load_file

from sparseflow.files import SparseFormatError, load, save

ODD_VALUES: list[Any] = [
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
ODD_VALUES += ["dense", "weights", "0" * 64, [], [1], [0, 8], [15], [5, 3], [2, 200], {}, {"x": 1}]


@pytest.mark.parametrize("format", ["compact", "dense"])
def test_every_flipped_byte_is_found_or_changes_nothing(tmp_path: Path, format: str) -> None:
    path = tmp_path / "ticket"
    saved(path, format)
    good, right = path.read_bytes(), load(path)
    # The blanks behind the header's JSON may become other blanks; nothing else may change unseen.
    unseen = 0
    dice = random.Random(0)
    with path.open("r+b", buffering=0) as file:
        for position, byte in enumerate(good):
            os.pwrite(file.fileno(), bytes([byte ^ dice.randrange(1, 256)]), position)
            try:
                assert_same(load(path), right)
                unseen += 1
            except SparseFormatError:
                pass
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert path.read_bytes() == good
    assert unseen <= 8


@pytest.mark.parametrize("format", ["compact", "dense"])
def test_a_file_cut_at_any_length_is_refused(tmp_path: Path, format: str) -> None:
    path = tmp_path / "ticket"
    saved(path, format)
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(SparseFormatError):
            load(path)


@pytest.mark.parametrize("format", ["compact", "dense"])
def test_mutated_fields(tmp_path: Path, format: str) -> None:
    """A field of the header, of our JSON or of the data gets another value, the sha256 are made right again.

    What still loads is what another reader of safetensors takes too, and comes back from a file of its own.
    """
    path, again = tmp_path / "ticket", tmp_path / "again"
    good = saved(path, format)
    dice = random.Random(1)
    accepted = 0
    for _ in range(300):
        raw = copy.deepcopy(good)
        mutate(raw, dice)
        path.write_bytes(raw.to_bytes())
        try:
            # The cap keeps a mutant that is right but huge from filling the memory of the machine.
            loaded = load(path, max_dense_bytes=2**20)
        except SparseFormatError:
            continue
        accepted += 1
        load_file(path)
        save(loaded, again, format="compact")
        assert_same(load(again), loaded)
    assert 15 < accepted < 150


def mutate(raw: RawFile, dice: random.Random) -> None:
    assert raw.content is not None
    if dice.random() < 0.3:
        raw.data[dice.randrange(len(raw.data))] ^= 1 << dice.randrange(8)
        raw.rehash()
        return
    places = [*_places(raw.header), *_places(raw.content), *_places(raw.metadata)]
    where, key = dice.choice(places)
    if dice.random() < 0.1:
        del where[key]
    elif dice.random() < 0.3:
        other, other_key = dice.choice(places)
        where[key] = copy.deepcopy(other[other_key])
    elif type(where[key]) is int and dice.random() < 0.5:
        where[key] += dice.choice([-8, -1, 1, 8])
    else:
        where[key] = copy.deepcopy(dice.choice(ODD_VALUES))


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *_places(value[key])]]
