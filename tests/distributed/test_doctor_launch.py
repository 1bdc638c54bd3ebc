"""`sparseflow doctor` by all processes of a launch."""

from __future__ import annotations

from pathlib import Path

from launching import Workers, workers

MODULE = "sparseflow_launchers.doctor"


def findings(launch: Workers) -> dict[str, tuple[str, str]]:
    """Name → status and text of what rank 0 printed."""
    rows = [line.split(maxsplit=2) for line in launch.log(0).splitlines()]
    return {name: (status, text) for status, name, text in rows if status in ("ok", "warning", "wrong")}


def test_ranks_that_agree(tmp_path: Path) -> None:
    with workers(tmp_path, "--out", "run", module=MODULE) as launch:
        assert launch.statuses() == [0, 0], launch.log(0)
    found = findings(launch)
    assert {status for status, _ in found.values()} == {"ok"}
    assert {"shared", "clocks", "installed", "recipes", "gpus", "space"} <= set(found)
    assert "2 processes" in found["batch"][1] and "2 ranks on 1 machine, on the CPU" in found["gpus"][1]
    assert "ok " not in launch.log(1)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "rank-0.log", "rank-1.log"}


def test_ranks_that_do_not(tmp_path: Path) -> None:
    with workers(tmp_path, "--out", "run", module=MODULE, each={1: ["--set", "training.steps=7"]}) as launch:
        assert launch.statuses() == [2, 2], launch.log(0)
    found = findings(launch)
    assert [name for name, (status, _) in found.items() if status == "wrong"] == ["recipes"]
    assert "rank 1 has recipe" in found["recipes"][1]


def test_a_wrong_option_is_said_once(tmp_path: Path) -> None:
    with workers(tmp_path, "--engine", "zero", module=MODULE) as launch:
        assert launch.statuses() == [2, 2]
    assert len(launch.errors(0)) == 1 and not launch.errors(1)
