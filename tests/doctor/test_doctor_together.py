"""What the processes of a launch find out together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparseflow.doctor import Launch, examine
from sparseflow.doctor.together import check_clocks, check_gpus, check_same, check_token, versions
from sparseflow.ranks import Ranks

ROOT = Path(__file__).parents[2]


class Beside(Ranks):
    """Rank 0 of two, whose companion answers with a function of what rank 0 says."""

    world = 2

    def __init__(self, other: Callable[[Any], Any]) -> None:
        self.other = other

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other(value)]


AGREES = Beside(lambda value: value)


def test_a_folder_that_all_see(tmp_path: Path) -> None:
    assert check_token(AGREES, tmp_path / "out").status == "ok"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_one_does_not_see(tmp_path: Path) -> None:
    found = check_token(Beside(lambda value: False), tmp_path)
    assert found.status == "wrong" and "rank 1 of 2 does not see" in found.text
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_there_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparseflow.doctor.together._SEE_SECONDS", 0.0)
    monkeypatch.setattr("sparseflow.doctor.together._write", lambda path, token: None)
    assert "rank 0, 1 of 2 do not see" in check_token(AGREES, tmp_path).text


def test_a_file_of_another_launch_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparseflow.doctor.together._SEE_SECONDS", 0.0)
    monkeypatch.setattr("sparseflow.doctor.together._write", lambda path, token: path.write_text("old") and None)
    assert check_token(AGREES, tmp_path / "out").status == "wrong"


def test_a_folder_that_rank_0_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    found = check_token(AGREES, tmp_path / "out" / "below")
    assert found.status == "wrong" and "rank 0 cannot write" in found.text


def test_clocks() -> None:
    assert check_clocks(Beside(lambda moment: moment + 0.5)).status == "ok"
    found = check_clocks(Beside(lambda moment: moment - 7.0))
    assert found.status == "wrong" and "rank 1 is -7.0 s from rank 0" in found.text


def test_waiting_once_is_no_clock_that_is_wrong() -> None:
    delays = iter([3.0, 0.25, 2.0])
    found = check_clocks(Beside(lambda moment: moment + next(delays)))
    assert (found.status, found.text) == ("ok", "the ranks' clocks are 0.25 s apart")


def test_versions_that_differ() -> None:
    mine = dict(versions())
    assert check_same(AGREES, "installed", mine, "install the same").status == "ok"
    found = check_same(Beside(lambda value: {**value, "torch": "2.11.0"}), "installed", mine, "install the same")
    assert found.status == "wrong"
    assert found.text == f"rank 1 has torch 2.11.0 instead of {mine['torch']}; install the same"


@pytest.mark.parametrize(
    ("seen", "here", "other", "status"),
    [
        (0, 2, ["b", 0, 2], "ok"),
        (8, 8, ["b", 8, 8], "ok"),
        (8, 8, ["b", 0, 8], "wrong"),
        (8, 8, ["b", 4, 8], "wrong"),
    ],
)
def test_gpus_of_all_nodes(seen: int, here: int, other: list[Any], status: str) -> None:
    found = check_gpus(Beside(lambda value: other), seen, here)
    assert found.status == status
    assert status == "ok" or "b" in found.text


def test_what_counts_is_how_many_there_are(tmp_path: Path) -> None:
    config = ROOT / "launchers" / "configs" / "one_cpu.yaml"
    launch = Launch("digits", config=config, processes=3, out=tmp_path / "out")
    found = {finding.name: finding for finding in examine(launch, AGREES)}
    assert [name for name, finding in found.items() if finding.status == "wrong"] == ["processes", "config"]
    assert "60 = 2 processes" in found["batch"].text
