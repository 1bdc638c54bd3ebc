"""A launch that has not the processes that it was asked for says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparseflow_launchers.launch import asked_processes, check_world, from_ancestors, from_environment

ROOT = Path(__file__).parents[2]
PYTHON = "/usr/bin/python3"


@pytest.mark.parametrize(
    "line",
    [
        [PYTHON, "/usr/bin/accelerate", "launch", "--cpu", "--num_processes", "2", "train.py", "--num_processes", "5"],
        [PYTHON, "/usr/bin/accelerate-launch", "--num-processes=2", "-m", "train", "--config_file", "none.yaml"],
        [PYTHON, "-m", "accelerate.commands.launch", "--num_processes=2", "train.py"],
        [PYTHON, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2", "train.py"],
    ],
)
def test_the_command_line_of_accelerate(line: list[str]) -> None:
    assert from_ancestors([["bash"], line, ["/sbin/init"]]) == (2, "accelerate launch --num_processes 2")


def test_the_config_of_accelerate(tmp_path: Path) -> None:
    config = tmp_path / "ddp.yaml"
    config.write_text("distributed_type: MULTI_GPU\nnum_processes: 8\n")
    line = [PYTHON, "/usr/bin/accelerate", "launch", "--config_file", str(config), "train.py"]
    assert from_ancestors([line]) == (8, f"accelerate launch with num_processes: 8 in {config}")
    # The command line has the last word, and the nearest launcher the first.
    assert from_ancestors([[*line[:3], "--num_processes", "4", *line[3:]]]) == (
        4,
        "accelerate launch --num_processes 4",
    )
    assert from_ancestors([line, [PYTHON, "accelerate-launch", "--num_processes", "3", "x.py"]]) == (
        8,
        f"accelerate launch with num_processes: 8 in {config}",
    )


def test_the_default_config_of_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "default_config.yaml"
    config.write_text("distributed_type: MULTI_GPU\nnum_processes: 8\n")
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(config))
    launch = [PYTHON, "/usr/bin/accelerate", "launch"]
    asked = from_ancestors([[*launch, "train.py"]])
    assert asked is not None and asked[0] == 8
    # accelerate does not read it under --cpu.
    assert from_ancestors([[*launch, "--cpu", "train.py"]]) is None
    config.unlink()
    assert from_ancestors([[*launch, "train.py"]]) is None


@pytest.mark.parametrize(
    "line", [[PYTHON, "train.py", "accelerate"], ["bash"], [], [PYTHON, "/usr/bin/accelerate", "env"]]
)
def test_other_command_lines_say_nothing(line: list[str]) -> None:
    assert from_ancestors([line]) is None


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({"WORLD_SIZE": "4", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}, (4, "WORLD_SIZE=4")),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, (3, "OMPI_COMM_WORLD_SIZE=3")),
        ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}, (2, "srun (SLURM_NTASKS=2)")),
        # A batch script, an interactive step, a shell without any.
        ({"SLURM_NTASKS": "2"}, None),
        ({"SLURM_STEP_ID": "4294967290", "SLURM_NTASKS": "2"}, None),
        ({}, None),
    ],
)
def test_the_environment(environment: dict[str, str], asked: tuple[int, str] | None) -> None:
    assert from_environment(environment) == asked


def test_the_option_has_the_first_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert asked_processes(2) == (2, "--processes 2")
    assert asked_processes() == (4, "WORLD_SIZE=4")


@pytest.mark.parametrize(
    ("asked", "real", "says"),
    [
        ((2, "accelerate launch --num_processes 2"), 1, "accelerate starts a single process"),
        ((2, "srun (SLURM_NTASKS=2)"), 1, "tasks of srun do not find each other"),
        ((4, "WORLD_SIZE=4"), 1, "have not found each other"),
        ((1, "--processes 1"), 8, "expected 1 process, as --processes 1 says, got 8; start it with: torchrun"),
    ],
)
def test_another_world_is_refused(asked: tuple[int, str], real: int, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_world(asked, real)
    assert says in str(caught.value)
    assert f"torchrun --nproc_per_node {asked[0]} " in str(caught.value)


@pytest.mark.parametrize("asked", [None, (2, "--processes 2")])
def test_the_world_that_was_asked_for_is_fine(asked: tuple[int, str] | None) -> None:
    check_world(asked, 2)


WORKER = """
import os, sys
from sparseflow_launchers.launch import asked_processes, check_world
try:
    check_world(asked_processes(), int(os.environ.get("WORLD_SIZE", "1")))
except ValueError as error:
    print(f"sparseflow: {error}", file=sys.stderr)
    sys.exit(2)
"""


def test_accelerate_launch_on_a_cpu_is_found_out(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "ACCELERATE"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "launchers")])
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    ended = subprocess.run(
        [*launcher, "--cpu", "--num_processes", "2", "--num_machines", "1", str(script), "gpt", "--out", "a b"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = [line for line in ended.stderr.splitlines() if line.startswith("sparseflow: ")]
    assert len(said) == 1, ended.stderr
    assert "expected 2 processes, as accelerate launch --num_processes 2 says, got 1" in said[0]
    assert f"torchrun --nproc_per_node 2 {script} gpt --out 'a b'" in said[0]
    assert "returned non-zero exit status 2" in ended.stderr
