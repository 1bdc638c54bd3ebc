"""Stores that cannot be opened, and disks that are full: named, and the store stays whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stored_weights import contents, made, random_mask

from sparseflow.hardware.streaming.spill import Spill
from sparseflow.hardware.streaming.store import Entry, Store
from sparseflow.hardware.streaming.updates import Adam

SHAPES = {"fc.weight": (60, 100), "fc.bias": (60,)}
WEIGHTS = {name: torch.ones(shape) for name, shape in SHAPES.items()}
MASKS = {"fc.weight": random_mask((60, 100), 0.3, seed=1)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made(tmp_path / "store", WEIGHTS, MASKS).close()
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({**SHAPES, "fc.weight": (60, 101)}, r"for 'fc.weight', it has \(60, 100\) and the model \(60, 101\)"),
        ({"fc.weight": (60, 100)}, r"for 'fc.bias', it has \(60,\) and the model no parameter"),
        ({**SHAPES, "head.weight": ()}, r"for 'head.weight', it has no parameter and the model \(\)"),
    ],
)
def test_of_another_model(folder: Path, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=rf"is the store of another model: {message}; open it with the model"):
        Store.open(folder, shapes)
    Store.open(folder, SHAPES).close()


def test_truncated(folder: Path) -> None:
    path = folder / "00000-0.tiles"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(ValueError, match=rf"'fc.weight', is damaged: expected {size} bytes in .*, got {size - 1} b"):
        Store.open(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"expected \d+ bytes in .*, got no such file"):
        Store.open(folder)


def test_damaged_index(folder: Path) -> None:
    path = folder / "00000-0.tiles"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with (
        Store.open(folder) as store,
        pytest.raises(ValueError, match=r"00000-0.tiles, with 'fc.weight', is damaged: expected an index "),
    ):
        store.verify()


def test_damaged_count(folder: Path) -> None:
    path = folder / "00000-0.tiles"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"00000-0.tiles, with 'fc.weight', is damaged: expected \d+ kept weights"):
        Store.open(folder)


def test_of_another_version(folder: Path) -> None:
    rewrite(folder, lambda fields: fields | {"version": 2})
    with pytest.raises(ValueError, match=r"expected a store of version 1, got 2, of another sparseflow"):
        Store.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields | {"step": -1}, "greater than or equal to 0 at .'step'"),
        (lambda fields: fields | {"digest": "0"}, "expected the digest .*, got '0'"),
        (lambda fields: fields | {"more": 1}, "Extra inputs are not permitted"),
        (lambda fields: {}, "KeyError"),
    ],
)
def test_manifest_of_another_content(folder: Path, change: Callable[[dict[str, object]], object], message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(ValueError, match=rf"MANIFEST.json is damaged: .*{message}.*; restore the store from a copy"):
        Store.open(folder)


def test_manifest_with_a_flipped_bit(folder: Path) -> None:
    path = folder / "MANIFEST.json"
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), 41):
        content[place] ^= 4
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"MANIFEST.json is damaged|expected a store of version"):
            Store.open(folder)
        content[place] ^= 4
    path.write_bytes(content)
    Store.open(folder).close()


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no store: expected a file MANIFEST.json in it, found none"):
        Store.open(tmp_path / "nowhere")


def test_opened_twice(folder: Path) -> None:
    with Store.open(folder), pytest.raises(ValueError, match=r"the store .* is open already"):
        Store.open(folder)
    Store.open(folder).close()


def test_made_twice(folder: Path) -> None:
    before = (folder / "MANIFEST.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds a store already: open it, remove it, or choose another folder"):
        made(folder, WEIGHTS, MASKS)
    assert (folder / "MANIFEST.json").read_bytes() == before


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            Entry("w", (2, 3), torch.ones(2, 4, dtype=torch.bool), None),
            r"the mask of 'w': expected torch.bool of shape",
        ),
        (Entry("w", (2, 3), torch.ones(2, 3), None), r"the mask of 'w': .* got torch.float32"),
        (Entry("w", (2, 3), None, torch.ones(3, 2)), r"'w' in the store: .*shape \(2, 3\).* got .*shape \(3, 2\)"),
        (Entry("w", (2,), None, torch.ones(2).double()), r"'w' in the store: expected torch.float32 .* torch.float64"),
        (Entry("fc", (2,), None, None), r"expected every parameter once, got 'fc' again"),
    ],
)
def test_wrong_entries_leave_nothing(tmp_path: Path, entry: Entry, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Store.create(tmp_path / "store", [Entry("fc", (3,), None, None), entry])
    assert list((tmp_path / "store").iterdir()) == []


def test_no_such_state(folder: Path) -> None:
    with Store.open(folder) as store:
        with pytest.raises(ValueError, match=r"'fc.bias' has no optimizer state 'momentum'; available: exp_avg"):
            store.state("fc.bias", "momentum")
        with pytest.raises(ValueError, match=r"expected torch.float32 of shape \(60,\) on the CPU, got .*\(61,\)"):
            store.put("fc.bias", torch.ones(61))
        with pytest.raises(ValueError, match=r"expected torch.float32 of shape \(60,\)"):
            store.write("fc.bias", torch.ones(60).half())


def test_full_disk_while_it_is_made(tmp_path: Path, limited_files: Callable[[int], None]) -> None:
    limited_files(20_000)
    with pytest.raises(OSError, match=r"no room for \d+ bytes in .*00000-0.tiles: File too large; \d+ are free"):
        made(tmp_path / "store", WEIGHTS, MASKS)
    assert list((tmp_path / "store").iterdir()) == []


def test_full_disk_at_a_new_mask(folder: Path, limited_files: Callable[[int], None]) -> None:
    with Store.open(folder) as store:
        before = contents(store)
        limited_files(30_000)
        with pytest.raises(OSError, match=r"no room for .*00000-1.tiles"):
            store.remask("fc.weight", ~MASKS["fc.weight"])
        assert contents(store) == before
        store.commit()
    assert not (folder / "00000-1.tiles").exists()


def test_full_disk_at_a_commit(folder: Path, limited_files: Callable[[int], None]) -> None:
    with Store.open(folder) as store:
        committed = contents(store)
        store.update("fc.bias", torch.ones(60), Adam(lr=0.1))
        changed = contents(store)
        limited_files(100)
        with pytest.raises(OSError, match=r"no room for \d+ bytes in .*MANIFEST.json: File too large"):
            store.commit()
        assert contents(store) == changed
        limited_files(10**6)
        store.commit()
    with Store.open(folder) as store:
        assert contents(store) == changed != committed
    assert not list(folder.glob(".MANIFEST*"))


def test_full_disk_for_gradients(folder: Path, limited_files: Callable[[int], None]) -> None:
    with Store.open(folder) as store:
        limited_files(5000)
        with pytest.raises(OSError, match=r"no room for \d+ bytes in .*scratch"):
            Spill(store).put("fc.weight", (0, 0), torch.ones(store.nnz("fc.weight")))
    assert not list(folder.glob("*.scratch"))


def test_what_a_process_that_died_has_left_is_swept(folder: Path) -> None:
    mine = folder / "notes.txt"
    left = [folder / name for name in ("00007-0.tiles", "00001.scratch", ".MANIFEST.json.0123abcd.tmp")]
    for path in (mine, *left):
        path.write_text("x")
    Store.open(folder).close()
    assert mine.exists() and not any(path.exists() for path in left)


def rewrite(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Changes the manifest, and signs it again as its writer does."""
    from sparseflow.hardware.streaming.store_manifest import _sha256

    path = folder / "MANIFEST.json"
    fields = json.loads(path.read_text())
    del fields["sha256"]
    changed = change(fields)
    assert isinstance(changed, dict)
    path.write_text(json.dumps({**changed, "sha256": _sha256(changed)}))


def test_a_commit_that_was_interrupted_too_late_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest has taken its place: what it names must not be written to."""

    def interrupted(directory: Path) -> None:
        raise KeyboardInterrupt

    with Store.open(folder) as store:
        store.update("fc.bias", torch.ones(60), Adam(lr=0.1))
        committed = contents(store)
        with monkeypatch.context() as patch:
            patch.setattr("sparseflow.atomic.sync_directory", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.commit()
        store.update("fc.bias", torch.ones(60), Adam(lr=0.1))
    with Store.open(folder) as store:
        assert contents(store) == committed


def test_making_one_that_was_interrupted_too_late_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparseflow.atomic.sync_directory", lambda directory: os.stat(directory / "missing"))
    with pytest.raises(OSError, match="missing"):
        made(tmp_path / "store", WEIGHTS, MASKS)
    assert list((tmp_path / "store").iterdir()) == []
