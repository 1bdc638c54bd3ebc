"""The configs that come with sparseflow: each loads, its command is one, and Slurm jobs requeue when they should."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser

from sparseflow.recipes import load_recipe
from sparseflow.runs import Run, note_stop

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "launchers" / "configs"
YAMLS = sorted(CONFIGS.glob("*.yaml"))
JOBS = sorted(CONFIGS.glob("*.sbatch"))


def command(path: Path) -> list[str]:
    """The one command that the head comment of a file gives."""
    head = [line for line in path.read_text().splitlines() if line.startswith("#   ")]
    assert len(head) == 1, f"{path}: expected one command in the head comment"
    return shlex.split(head[0].removeprefix("#   "))


def test_there_are_configs() -> None:
    assert {path.name for path in YAMLS} >= {"one_gpu.yaml", "one_cpu.yaml", "ddp.yaml", "fsdp2.yaml", "nodes.yaml"}
    assert {path.name for path in JOBS} == {"one_node.sbatch", "nodes.sbatch"}


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_accelerate_loads_it(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes >= config.num_machines
    assert config.num_processes % config.num_machines == 0


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_its_command_is_one_of_accelerate_launch(path: Path) -> None:
    words = command(path)
    assert words[:2] == ["accelerate", "launch"]
    found, unknown = launch_command_parser().parse_known_args(words[2:])
    assert not unknown
    assert ROOT / found.config_file == path
    assert found.module and found.training_script == "sparseflow_launchers.imp"
    assert found.training_script_args[:3] == ["RECIPE", "--out", "DIR"]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_its_command_is_one_of_sbatch(path: Path) -> None:
    words = command(path)
    assert words[0] == "sbatch" and words[-2:] == ["RECIPE", "DIR"]
    assert ROOT / words[-3] == path


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_bash_can_read_it(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=10)


@dataclass
class Slurm:
    """A PATH with an `srun`, a `torchrun` and a `scontrol` that write down how they were called."""

    folder: Path
    out: Path
    calls: list[list[str]] = field(default_factory=list)

    def run(self, job: Path, leaves: Path | None, status: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the script; its torchrun leaves a copy of that stopped.json and that exit status."""
        tools = self.folder / "bin"
        tools.mkdir(exist_ok=True)
        note = f'printf "%s\\0" "${{0##*/}}" "$@" >> {self.folder}/calls; printf "\\n" >> {self.folder}/calls\n'
        leave = "" if leaves is None else f"mkdir -p {self.out}; cp {leaves} {self.out}/stopped.json\n"
        bodies = {
            "torchrun": f"{note}{leave}exit {status}\n",
            # Everything before the program is for srun itself.
            "srun": f'{note}while [ "$1" != torchrun ]; do shift; done\n"$@" || exit 1\n',
            "scontrol": f'{note}[ "$1" != show ] || printf "node-a\\nnode-b\\n"\n',
        }
        for name, body in bodies.items():
            (tools / name).write_text(f"#!/bin/bash\n{body}")
            (tools / name).chmod(0o755)
        environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_JOB_NUM_NODES": "2",
        }
        ended = subprocess.run(
            ["bash", str(job), *arguments], env=environment, capture_output=True, text=True, timeout=20
        )
        if (self.folder / "calls").exists():
            lines = (self.folder / "calls").read_text().splitlines()
            self.calls = [line.rstrip("\0").split("\0") for line in lines]
        return ended

    @property
    def requeued(self) -> bool:
        """Whether the job asked to be queued again."""
        return ["scontrol", "requeue", "12345"] in self.calls


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path, tmp_path / "out")


def stopped(folder: Path, status: int, seconds: float = 9.5) -> Path:
    """A stopped.json as a run writes it."""
    folder.mkdir(exist_ok=True)
    note_stop(Run(folder, load_recipe("digits")), status, 'a "status": 75 in the reason', 40, seconds)
    return folder / "stopped.json"


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
@pytest.mark.parametrize(
    ("left", "torchrun", "requeued", "status"),
    [(75, 1, True, 0), (None, 0, False, 0), (2, 1, False, 2), (1, 1, False, 1), (None, 1, False, 1)],
)
def test_only_a_run_stopped_by_a_signal_is_requeued(
    slurm: Slurm, job: Path, left: int | None, torchrun: int, requeued: bool, status: int
) -> None:
    leaves = None if left is None else stopped(slurm.folder / "left", left)
    ended = slurm.run(job, leaves, torchrun, "digits", str(slurm.out))
    assert (slurm.requeued, ended.returncode) == (requeued, status), ended.stderr


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_what_an_earlier_run_left_says_nothing(slurm: Slurm, job: Path) -> None:
    # The worker did not even begin: requeued, the job would come back for ever.
    stopped(slurm.out, 75)
    assert slurm.run(job, None, 1, "digits", str(slurm.out)).returncode == 1
    assert not slurm.requeued
    again = stopped(slurm.folder / "left", 75, seconds=20.5)
    assert slurm.run(job, again, 1, "digits", str(slurm.out)).returncode == 0
    assert slurm.requeued


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_what_the_worker_is_given(slurm: Slurm, job: Path) -> None:
    slurm.run(job, None, 0, "digits", str(slurm.out), "--set", "name=a b")
    [torchrun] = [call for call in slurm.calls if call[0] == "torchrun"]
    worker = torchrun[torchrun.index("-m") + 1 :]
    assert worker == ["sparseflow_launchers.imp", "digits", "--out", str(slurm.out), "--resume", "--set", "name=a b"]
    if job.name == "nodes.sbatch":
        assert torchrun[torchrun.index("--rdzv_endpoint") + 1] == "node-a:22345"
        assert torchrun[torchrun.index("--nnodes") + 1] == "2"


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_a_job_without_a_recipe_or_folder_says_what_it_expects(slurm: Slurm, job: Path) -> None:
    ended = slurm.run(job, None, 0, "digits")
    assert ended.returncode == 2 and "expected: sbatch" in ended.stderr
    assert not slurm.calls


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_torchrun_takes_its_options(slurm: Slurm, job: Path) -> None:
    from torch.distributed.run import parse_args

    slurm.run(job, None, 0, "digits", str(slurm.out))
    [torchrun] = [call for call in slurm.calls if call[0] == "torchrun"]
    found = parse_args(torchrun[1:])
    assert found.module and found.training_script == "sparseflow_launchers.imp"
    assert found.max_restarts == 1
