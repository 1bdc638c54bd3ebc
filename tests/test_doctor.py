"""`sparseflow doctor` as it is typed."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from command_line import CommandLine

CONFIGS = Path(__file__).parents[1] / "launchers" / "configs"


@pytest.fixture
def sparseflow(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capfd)


def test_a_launch_that_is_fine(sparseflow: CommandLine, tmp_path: Path) -> None:
    said = sparseflow("doctor", "digits", "--processes", 4, "--out", tmp_path / "out")
    assert said.status == 0, said.out
    assert {line.split()[0] for line in said.out.splitlines()} == {"ok"}
    assert "60 = 4 processes" in said.out
    assert not list(tmp_path.iterdir())


def test_a_launch_that_is_not(sparseflow: CommandLine, tmp_path: Path) -> None:
    said = sparseflow("doctor", "digits", "--config", CONFIGS / "ddp.yaml", "--out", tmp_path / "out", "--json")
    assert said.status == 2
    found = {row["name"]: row for row in json.loads(said.out)}
    assert [name for name, row in found.items() if row["status"] == "wrong"] == ["batch"]
    assert "8 processes" in found["batch"]["text"]
    assert "8 processes on 1 machine" in found["config"]["text"]


def test_a_recipe_that_is_none_does_not_hide_the_rest(sparseflow: CommandLine, tmp_path: Path) -> None:
    said = sparseflow("doctor", "digitz", "--config", tmp_path / "none.yaml", "--out", tmp_path, "--json")
    found = {row["name"]: row["status"] for row in json.loads(said.out)}
    assert said.status == 2
    assert (found["recipe"], found["config"], found["fsync"]) == ("wrong", "wrong", "ok")


def test_a_dense_round_under_deepspeed(sparseflow: CommandLine, tmp_path: Path) -> None:
    config = tmp_path / "ds.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    arguments = ("doctor", "digits", "--deepspeed", config, "--out", tmp_path / "out", "--json")
    fine = sparseflow(*arguments, "--processes", 2)
    assert fine.status == 0, fine.out
    found = {row["name"]: row["text"] for row in json.loads(fine.out)}
    assert "ZeRO-3, fp32; batch 60 = 2 processes × 1 × a micro-batch of 30" in found["config"]
    assert sparseflow(*arguments, "--processes", 7).status == 2


def test_deepspeed_must_be_there_for_a_dense_round(
    sparseflow: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, version = tmp_path / "ds.json", importlib.metadata.version
    config.write_text("{}")

    def without(name: str) -> str:
        if name == "deepspeed":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("importlib.metadata.version", without)
    assert sparseflow("doctor").status == 0
    said = sparseflow("doctor", "--deepspeed", config)
    assert said.status == 2 and "expected deepspeed>=0.19, found none" in said.out


def test_nobody_mistypes_the_folder_that_nobody_typed(
    sparseflow: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = {row["name"]: row for row in json.loads(sparseflow("doctor", "digits", "--json").out)}
    assert found["folder"] == {"name": "folder", "status": "ok", "text": "runs/digits will be made"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "a.yaml", "--deepspeed", "b.json"], "got both"),
        (["--engine", "zero"], "--engine: expected ddp or fsdp2, got 'zero'"),
    ],
)
def test_questions_that_make_no_sense(sparseflow: CommandLine, arguments: list[str], says: str) -> None:
    assert says in sparseflow("doctor", *arguments).error


def test_without_anything_it_looks_at_the_installation(sparseflow: CommandLine) -> None:
    said = sparseflow("doctor", "--json")
    assert said.status == 0
    assert [row["name"] for row in json.loads(said.out)] == ["versions", "gpus"]
