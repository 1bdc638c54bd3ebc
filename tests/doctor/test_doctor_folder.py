"""The run's folder: there, writable, with renames, fsync and a clock to rely on, and large enough."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sparseflow.doctor.finding import Finding
from sparseflow.doctor.folder import check_clock, check_folder, check_fsync, check_rename
from sparseflow.doctor.network import Network, check_network
from sparseflow.doctor.space import check_space, needed_bytes, size
from sparseflow.recipes import load_recipe
from sparseflow.runs import Run, begin

DIGITS = load_recipe("digits")


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def refuse(*arguments: Any, **options: Any) -> Any:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_folder_that_can_be_made(tmp_path: Path) -> None:
    found = by_name(check_folder(tmp_path / "out", DIGITS))
    assert {finding.status for finding in found.values()} == {"ok"}
    assert set(found) == {"folder", "rename", "fsync", "clock"}
    assert "will be made" in found["folder"].text
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_parent_is_not_there_may_be_mistyped(tmp_path: Path) -> None:
    [folder, *others] = check_folder(tmp_path / "shred" / "runs" / "out", DIGITS)
    assert folder.status == "warning" and "mistyped" in folder.text
    assert {finding.status for finding in others} == {"ok"}
    # Nobody mistypes what nobody typed.
    assert check_folder(tmp_path / "runs" / "out", DIGITS, named=False)[0].status == "ok"


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_in_the_place_of_a_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "out").write_text("a file")
    [found] = check_folder(tmp_path / "out" / below, DIGITS)
    assert found.status == "wrong" and "is a file" in found.text


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    [found] = check_folder(tmp_path, DIGITS)
    assert found.status == "wrong" and "Read-only file system" in found.text


def test_a_folder_with_a_run(tmp_path: Path) -> None:
    begin(Run(tmp_path, DIGITS))
    found = by_name(check_folder(tmp_path, DIGITS))["folder"]
    assert found.status == "ok" and "--resume" in found.text
    other = load_recipe("digits", ["training.steps=10"])
    found = by_name(check_folder(tmp_path, other))["folder"]
    assert found.status == "wrong" and "another recipe: training differ" in found.text


def test_a_folder_with_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    assert by_name(check_folder(tmp_path, DIGITS))["folder"].status == "wrong"


def test_renames_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", refuse)
    assert check_rename(tmp_path).status == "wrong"


def test_renames_that_leave_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", lambda source, target: Path(source).unlink())
    found = check_rename(tmp_path)
    assert found.status == "wrong" and "does not take another's place" in found.text


def test_a_disk_that_does_not_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_fsync(tmp_path).status == "ok"
    monkeypatch.setattr(os, "fsync", refuse)
    found = check_fsync(tmp_path)
    assert found.status == "wrong" and "power cut" in found.text


def test_a_disk_that_syncs_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparseflow.doctor.folder._sync_seconds", lambda path: 2.5)
    found = check_fsync(tmp_path)
    assert found.status == "warning" and "2500.0 ms" in found.text


@pytest.mark.parametrize(("shift", "says"), [(-60, "60 s behind"), (90, "90 s ahead of")])
def test_a_file_system_of_another_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int, says: str) -> None:
    assert check_clock(tmp_path).status == "ok"
    write = Path.write_bytes

    def late(path: Path, content: bytes) -> int:
        written = write(path, content)
        moment = path.stat().st_mtime + shift
        os.utime(path, (moment, moment))
        return written

    monkeypatch.setattr(Path, "write_bytes", late)
    found = check_clock(tmp_path)
    assert found.status == "warning" and says in found.text


def test_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=5_000_000))
    assert check_space(tmp_path, 4_999_999).status == "ok"
    found = check_space(tmp_path, 6_000_000)
    assert (found.status, found.text) == (
        "wrong",
        f"5.0 MB are free in {tmp_path}, and the run keeps up to about 6.0 MB; free some, or choose another --out",
    )


def test_sizes_for_people() -> None:
    assert [size(count) for count in (7, 1500, 3_400_000_000, 2 * 10**15)] == [
        "7 bytes",
        "1.5 kB",
        "3.4 GB",
        "2000.0 TB",
    ]


def test_what_a_run_keeps_by_hand() -> None:
    # One weight that is not pruned, eight that are; one pruning by a half; two seeds; a fifth on top.
    settings = ["pruning.rounds=1", "pruning.rate=0.5", "pruning.rates=null", "controls.rounds=[]"]
    recipe = load_recipe("digits", settings)
    dense = 4 * 9
    tickets = 4 * (8 + 4) + 2 * (4 * 1 + 8 / 8)
    one = dense + 2 * 3 * dense + 3 * 4 * dense + tickets
    assert needed_bytes(recipe, Network(9, 8)) == round(1.2 * 2 * one)
    assert needed_bytes(recipe, Network(9, 8), zero=True) == round(1.2 * 2 * (one + 4 * 4 * dense))


def test_what_a_run_keeps_shrinks_with_its_density() -> None:
    network = Network(10**6, 10**6)

    def tickets(*settings: str) -> int:
        return needed_bytes(load_recipe("digits", ["pruning.rates=null", "pruning.rounds=9", *settings]), network)

    rate, slow = tickets("pruning.rate=0.5"), tickets("pruning.rate=0.1")
    density = tickets("pruning.rate=null", "pruning.density=0.1")
    assert rate < density < slow
    # A layer that is pruned more slowly bounds them all.
    assert tickets("pruning.rate=0.5", "pruning.allocation=layerwise", "pruning.rates={fc3.weight: 0.1}") == slow


def test_the_network_of_a_recipe() -> None:
    found, network = check_network(DIGITS)
    assert [finding.status for finding in found] == ["ok", "ok"]
    assert network == Network(50_610, 50_200)


def test_data_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparseflow.data.available", lambda: {"digits": "not here: run `pip install scikit-learn`"})
    [found], network = check_network(DIGITS)
    assert found.status == "warning" and network is None and "pip install scikit-learn" in found.text


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("data={name: digitz}", "data"),
        ("model={name: lenet}", "model"),
        ("pruning.param_filter=none.*", "model"),
        ("model={name: lenet_300_100, options: {input: 64}}", "model"),
    ],
)
def test_names_that_do_not_exist(setting: str, name: str) -> None:
    *_, found = check_network(load_recipe("digits", [setting]))[0]
    assert (found.name, found.status) == (name, "wrong")
