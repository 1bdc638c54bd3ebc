"""A committed directory is there whole or not at all, and nothing that happens to it goes unnoticed."""

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparseflow.files.commit import commit, commit_written, remove, sweep, validate
from sparseflow.files.manifest import CommitError, CommitRule
from sparseflow.files.part import Part, json_part, tensors_part
from sparseflow.files.readers import read_tensors

CONTENT = {"b": torch.arange(500.0), "a": torch.ones(3, dtype=torch.bool)}


def parts(scale: float = 1.0) -> dict[str, Part]:
    tensors = {"b": CONTENT["b"] * scale, "a": CONTENT["a"]}
    return {"state.safetensors": tensors_part(tensors), "about.json": json_part({"scale": scale})}


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is most of the time here, and nothing here can tell."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    commit(tmp_path / "round-00", parts, about={"step": 3})
    return tmp_path / "round-00"


def scale_in(target: Path) -> float:
    validate(target)
    return float(read_tensors(target / "state.safetensors")["b"][1])


def test_what_is_committed_is_valid_and_has_what_was_given(target: Path) -> None:
    manifest = validate(target)
    assert sorted(manifest.files) == ["about.json", "state.safetensors"] and manifest.about == {"step": 3}
    assert torch.equal(read_tensors(target / "state.safetensors")["b"], CONTENT["b"])
    assert {path.name for path in target.parent.iterdir()} == {"round-00"}


def test_the_manifest_has_the_sha256_that_a_part_foretells(target: Path) -> None:
    assert validate(target).files["state.safetensors"].sha256 == parts()["state.safetensors"].sha256


def test_a_large_file_is_hashed_beside_its_writing(tmp_path: Path) -> None:
    tensors = {str(index): torch.randn(2**18 if index % 2 else 9) for index in range(6)}
    commit(tmp_path / "large", lambda: {"state.safetensors": tensors_part(tensors)})
    validate(tmp_path / "large")


def test_equal_content_gives_equal_bytes(tmp_path: Path, target: Path) -> None:
    commit(tmp_path / "again", parts, about={"step": 3})
    for path in target.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_new_one_takes_the_place_of_the_old(target: Path) -> None:
    commit(target, lambda: parts(2.0))
    assert scale_in(target) == 2.0 and [path.name for path in target.parent.iterdir()] == ["round-00"]


def test_what_a_library_writes_is_committed_with_its_folders(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "shards").mkdir()
        (folder / "shards" / "0.bin").write_bytes(b"abc")
        (folder / "latest").write_text("shards")

    commit_written(tmp_path / "dense", write, about={"step": 1})
    assert sorted(validate(tmp_path / "dense").files) == ["latest", "shards/0.bin"]
    (tmp_path / "dense" / "shards" / "0.bin").write_bytes(b"abd")
    with pytest.raises(CommitError, match=r"dense/shards/0\.bin breaks the rule 'sha256'"):
        validate(tmp_path / "dense")


def flipped(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("draw", range(60))
def test_any_flipped_bit_is_noticed(target: Path, draw: int) -> None:
    """Two thirds of the draws in the small files: most bits are the tensors'."""
    generator = random.Random(draw)
    path = target / ("state.safetensors", "about.json", "MANIFEST.json")[draw % 3]
    flipped(path, generator.randrange(8 * path.stat().st_size))
    with pytest.raises(CommitError, match=path.name):
        validate(target)


def test_every_bit_of_the_manifest_counts(target: Path) -> None:
    path = target / "MANIFEST.json"
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped(path, bit)
        with pytest.raises(CommitError):
            validate(target)
        path.write_bytes(whole)


DAMAGE: dict[str, tuple[CommitRule, Callable[[Path], Any]]] = {
    "short": (CommitRule.SIZE, lambda path: os.truncate(path, path.stat().st_size - 1)),
    "long": (CommitRule.SIZE, lambda path: path.write_bytes(path.read_bytes() + b"\0")),
    "empty": (CommitRule.SIZE, lambda path: path.write_bytes(b"")),
    "missing": (CommitRule.MISSING, lambda path: path.unlink()),
    "extra": (CommitRule.EXTRA, lambda path: path.with_name("rank-7.safetensors").write_bytes(b"")),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["state.safetensors", "about.json"])
def test_damage_is_named(target: Path, name: str, damage: str) -> None:
    rule, apply = DAMAGE[damage]
    apply(target / name)
    with pytest.raises(CommitError) as caught:
        validate(target)
    assert caught.value.directory == target
    assert caught.value.rule is rule
    assert str(target) in str(caught.value) and str(caught.value.rule) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (b"", CommitRule.MANIFEST),
        (b"[]", CommitRule.MANIFEST),
        (b"{}", CommitRule.MANIFEST),
        (b"\xff", CommitRule.MANIFEST),
        (b"[" * 100_000, CommitRule.MANIFEST),
        (b'{"sha256": "", "version": 1}', CommitRule.MANIFEST_SHA256),
    ],
)
def test_a_bad_manifest_is_named(target: Path, text: bytes, rule: CommitRule) -> None:
    (target / "MANIFEST.json").write_bytes(text)
    with pytest.raises(CommitError, match=r"round-00/MANIFEST\.json") as caught:
        validate(target)
    assert caught.value.rule is rule


def test_an_unknown_version_is_named(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("sparseflow.files.manifest.VERSION", 2)
        commit(target, parts)
    with pytest.raises(CommitError, match="breaks the rule 'version': expected version 1, got 2"):
        validate(target)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommitError, match="none breaks the rule 'directory'"):
        validate(tmp_path / "none")


def test_a_sweep_leaves_what_is_whole(target: Path) -> None:
    shutil.copytree(target, target.with_name(".tmp-round-01-0a1b"))
    shutil.copytree(target, target.with_name(".del-round-00-0a1b"))
    # A process died between two renames, and one after them.
    shutil.copytree(target, target.with_name(".old-rewind"))
    shutil.copytree(target, target.with_name(".old-round-00"))
    commit(target, lambda: parts(2.0))
    sweep(target.parent)
    assert {path.name for path in target.parent.iterdir()} == {"round-00", "rewind"}
    assert scale_in(target) == 2.0 and scale_in(target.with_name("rewind")) == 1.0
    sweep(target / "none")


def test_what_is_removed_is_gone(target: Path) -> None:
    remove(target)
    remove(target)
    assert list(target.parent.iterdir()) == []


class Refused(Exception):
    """What a part raises that cannot be written."""


def test_an_error_leaves_what_was_there(target: Path) -> None:
    def refuse(sink: object) -> None:
        raise Refused

    with pytest.raises(Refused):
        commit(target, lambda: {**parts(2.0), "z": Part(refuse, 0)})
    assert scale_in(target) == 1.0 and [path.name for path in target.parent.iterdir()] == ["round-00"]


def test_a_failed_rename_leaves_what_was_there(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, renames = os.rename, iter(range(9))

    def failing(source: Any, destination: Any) -> None:
        if next(renames) == 1:
            raise OSError(errno.EIO, "input/output error")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="input/output error"):
        commit(target, lambda: parts(2.0))
    assert scale_in(target) == 1.0 and [path.name for path in target.parent.iterdir()] == ["round-00"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(target: Path, bad: float) -> None:
    with pytest.raises(ValueError, match="cannot save 'b': expected finite numbers"):
        commit(target, lambda: parts(bad))
    assert scale_in(target) == 1.0


@pytest.mark.parametrize("offset", range(0, 2200, 110))
def test_a_full_disk_at_any_byte_leaves_what_was_there(
    target: Path, limited_files: Callable[[int], None], offset: int
) -> None:
    limited_files(offset)
    with pytest.raises(OSError, match=r"no room for .*\.tmp-round-00-.*which needs 2\d\d\d bytes") as caught:
        commit(target, lambda: parts(2.0))
    limited_files(2**30)
    assert caught.value.errno == errno.EFBIG
    assert scale_in(target) == 1.0 and [path.name for path in target.parent.iterdir()] == ["round-00"]
    commit(target, lambda: parts(2.0))
    assert scale_in(target) == 2.0


def test_too_little_room_is_known_beforehand(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(target)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"no room for .*round-00, which needs 2\d\d\d bytes: 1000 are free"):
        commit(target, lambda: parts(2.0))
    assert scale_in(target) == 1.0 and [path.name for path in target.parent.iterdir()] == ["round-00"]
