"""Whatever happens to a file of a search is noticed; it goes on from what was saved before, or says why not."""

import errno
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from leavings import left_in
from searches import search, stop_after
from tiny_task import tiny_trainer

from sparseflow.files import commit
from sparseflow.training.progress import Progress
from sparseflow.training.records import Records
from sparseflow.training.trainer import Stopped

# What can be done without, and what cannot.
MENDED = ["rewind", "plan-01", "round-01", "round-01.weights", "round-00.weights", "round-02.training/step-000004"]
LOST = {"round-00": "round-00 is missing or damaged", "plan-02": "plan-02 is damaged; remove it"}


@pytest.fixture(autouse=True, scope="module")
def no_sync() -> Iterator[None]:
    """Waiting for the disk is most of the time here, and nothing here can tell."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    search(folder)
    return left_in(folder)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that was stopped in its last round, between two checkpoints and the end."""
    folder = tmp_path_factory.mktemp("stopped")
    for steps in (12, 0):
        trainer = tiny_trainer(evaluate_every=3)
        stop_after(trainer, steps)
        with pytest.raises(Stopped):
            search(folder, trainer)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if (path / "MANIFEST.json").exists()}
    assert found == {*MENDED, *LOST, "round-02.training/step-000003"}
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped, tmp_path / "search")
    return tmp_path / "search"


def resumed(folder: Path) -> list[str]:
    """Goes on with the search; what was reported."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        search(folder)
    return [str(one.message) for one in said]


def flip(path: Path, generator: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped": lambda path: flip(path, random.Random(0)),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "extra": lambda path: path.with_name("rank-9.safetensors").write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", MENDED)
def test_what_was_saved_before_is_taken(folder: Path, uninterrupted: dict[str, object], name: str, damage: str) -> None:
    for file in sorted((folder / name).iterdir())[-1:]:
        DAMAGE[damage](file)
    said = resumed(folder)
    assert len(said) == 1 and f"{name}/" in said[0] and "breaks the rule" in said[0]
    assert left_in(folder) == uninterrupted


@pytest.mark.parametrize("name", ["rewind", "plan-01", "round-01.weights"])
def test_a_missing_directory_is_mended(folder: Path, uninterrupted: dict[str, object], name: str) -> None:
    shutil.rmtree(folder / name)
    resumed(folder)
    assert left_in(folder) == uninterrupted


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", LOST)
def test_what_cannot_be_done_without_is_named(folder: Path, name: str, damage: str) -> None:
    DAMAGE[damage](sorted((folder / name).iterdir())[-1])
    before = {path for path in folder.rglob("*")}
    with pytest.warns(UserWarning, match=rf"{name}/.* breaks the rule"), pytest.raises(ValueError, match=LOST[name]):
        search(folder)
    assert {path for path in folder.rglob("*")} == before


@pytest.mark.parametrize("draw", range(30))
def test_any_flipped_bit_is_noticed(folder: Path, uninterrupted: dict[str, object], draw: int) -> None:
    generator = random.Random(draw)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "step-000003" not in path.parts]
    path = generator.choice(files)
    flip(path, generator)
    name = path.parent.relative_to(folder).as_posix()
    if name in LOST:
        with pytest.warns(UserWarning, match=path.name), pytest.raises(ValueError, match=LOST[name]):
            search(folder)
    else:
        assert path.name in " ".join(resumed(folder))
        assert left_in(folder) == uninterrupted


def test_without_a_checkpoint_the_round_begins_again(folder: Path, uninterrupted: dict[str, object]) -> None:
    for path in (folder / "round-02.training").rglob("state.safetensors"):
        DAMAGE["cut"](path)
    assert len(resumed(folder)) == 2
    assert left_in(folder) == uninterrupted


def test_two_damaged_rounds_are_one_too_many(folder: Path) -> None:
    for name in ("round-01", "round-00.weights"):
        DAMAGE["cut"](sorted((folder / name).iterdir())[-1])
    with pytest.warns(UserWarning) as said, pytest.raises(ValueError, match=r"round-00\.weights is missing or damaged"):
        search(folder)
    assert len(said) == 2


def test_a_rewind_point_without_a_copy_is_not_made_up(tmp_path: Path) -> None:
    trainer = tiny_trainer(evaluate_every=3)
    stop_after(trainer, 4)
    with pytest.raises(Stopped):
        search(tmp_path, trainer)
    DAMAGE["cut"](tmp_path / "rewind" / "rewind.safetensors")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"rewind\.safetensors is missing or damaged"):
        search(tmp_path)


def test_masks_made_elsewhere_are_kept_or_missed(folder: Path) -> None:
    masks = Records(folder).ticket(1).masks
    Records(folder).keep_masks(2, masks)
    found = Records(folder).masks(2)
    assert found == masks and list(found or []) == list(masks)
    assert Records(folder).masks(1) is None
    DAMAGE["cut"](folder / "masks-02" / "masks.safetensors")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="masks-02 is damaged; make these masks again"):
        Records(folder).masks(2)


def test_a_folder_of_an_older_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "round-00.json").write_text("{}")
    with pytest.raises(ValueError, match="was written by an earlier sparseflow"):
        search(tmp_path)


@pytest.mark.parametrize("limit", range(0, 6000, 300))
def test_a_disk_that_is_full_in_the_middle_of_a_file(
    tmp_path: Path,
    uninterrupted: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    limited_files: Callable[[int], None],
    limit: int,
) -> None:
    monkeypatch.setattr(Progress, "due", lambda self: True)
    limited_files(limit)
    with pytest.raises(OSError, match=r"no room for .*, which needs \d+ bytes"):
        search(tmp_path)
    limited_files(2**30)
    search(tmp_path)
    assert left_in(tmp_path) == uninterrupted


@pytest.mark.parametrize("number", range(0, 200, 20))
def test_a_disk_that_is_full_at_any_write(
    tmp_path: Path, uninterrupted: dict[str, object], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(Progress, "due", lambda self: True)
    write, writes = commit._Hashing.write, iter(range(10_000))

    def full(self: commit._Hashing, data: bytes | memoryview, /) -> None:
        if next(writes) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    with monkeypatch.context() as patched, pytest.raises(OSError, match=r"no room for .*, which needs \d+ bytes"):
        patched.setattr(commit._Hashing, "write", full)
        search(tmp_path)
    search(tmp_path)
    assert left_in(tmp_path) == uninterrupted


def test_a_search_on_too_small_a_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"no room for .*rewind, which needs \d+ bytes: 1000 are free"):
        search(tmp_path)
    assert list(tmp_path.iterdir()) == []
