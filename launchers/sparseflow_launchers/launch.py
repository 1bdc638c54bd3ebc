"""How many processes a launch was asked for, and whether they all came.

A launcher that starts fewer than it was told leaves each of them to train alone, on the whole batch, and to write over
the others' files. `accelerate launch` does that on a CPU: it starts one process, whatever `--num_processes` says.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

# What torchrun, deepspeed and the MPI launchers tell each process; accelerate reads the same.
_WORLD = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# Slurm's numbers of steps from here on are no steps of srun's: the batch script's, an interactive shell's.
_RESERVED_STEP = 0xFFFFFFF0


def asked_processes(option: int | None = None) -> tuple[int, str] | None:
    """How many processes the launch of this one was asked for, and who says so; None where nobody does.

    `option` is the worker's `--processes`, which has the first word. Then the nearest `accelerate launch` above this
    process, the environment that torchrun, deepspeed or MPI made, and srun's, which alone starts tasks that know
    nothing of each other.
    """
    if option is not None:
        return option, f"--processes {option}"
    return from_ancestors(_command_lines()) or from_environment(os.environ)


def check_world(asked: tuple[int, str] | None, real: int) -> None:
    """`ValueError`, with what to type instead, where the launch has not as many processes as it was asked for."""
    if asked is None or asked[0] == real:
        return
    wanted, who = asked
    processes, them = ("processes", "them") if wanted > 1 else ("process", "it")
    raise ValueError(
        f"expected {wanted} {processes}, as {who} says, got {real}{_reason(who, wanted, real)}; start {them} with: "
        f"torchrun --nproc_per_node {wanted} {_this_command()} (on several nodes: docs/distributed.md)"
    )


def from_ancestors(command_lines: Sequence[Sequence[str]]) -> tuple[int, str] | None:
    """What the first `accelerate launch` among the command lines says, on it or in its config file."""
    for line in command_lines:
        arguments = _accelerate_arguments(line)
        if arguments is not None:
            return _from_accelerate(arguments)
    return None


def from_environment(environment: Mapping[str, str]) -> tuple[int, str] | None:
    """What torchrun, deepspeed, MPI or srun wrote into the environment."""
    for name in _WORLD:
        if environment.get(name, "").isdigit():
            return int(environment[name]), f"{name}={environment[name]}"
    step = environment.get("SLURM_STEP_ID", "")
    tasks = environment.get("SLURM_NTASKS", "")
    if step.isdigit() and int(step) < _RESERVED_STEP and tasks.isdigit():
        return int(tasks), f"srun (SLURM_NTASKS={tasks})"
    return None


def _reason(who: str, wanted: int, real: int) -> str:
    if real == 1 and who.startswith("accelerate"):
        return ": accelerate starts a single process where it finds no GPU or is told --cpu"
    if real == 1 and who.startswith("srun"):
        return ": tasks of srun do not find each other by themselves; let each node's one task be a torchrun"
    if real == 1 and wanted > 1:
        return ": the processes have not found each other"
    return ""


def _command_lines() -> list[list[str]]:
    """The command lines of this process's ancestors, nearest first, as far as the system shows them."""
    lines = []
    try:
        for process in psutil.Process().parents():
            lines.append(process.cmdline())
    except psutil.Error:
        # An ancestor that is gone, or another user's: nothing above it can be seen either.
        pass
    return lines


def _accelerate_arguments(line: Sequence[str]) -> list[str] | None:
    """The arguments of `accelerate launch` in a command line, or None where it is no such command."""
    for place, word in enumerate(line[:4]):
        name = Path(word).name
        rest = list(line[place + 1 :])
        if name == "accelerate-launch" or word == "accelerate.commands.launch":
            return rest
        if (name == "accelerate" or word == "accelerate.commands.accelerate_cli") and rest[:1] == ["launch"]:
            return rest[1:]
    return None


def _from_accelerate(arguments: list[str]) -> tuple[int, str] | None:
    # Read by accelerate's own parser: where its options end and the program's begin, it alone knows.
    from accelerate.commands.config.config_args import ClusterConfig, default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    found, _ = launch_command_parser().parse_known_args(arguments)
    if found.num_processes is not None:
        return int(found.num_processes), f"accelerate launch --num_processes {found.num_processes}"
    # As accelerate has it: its default config is not read under --cpu.
    file = found.config_file or (None if found.cpu else default_config_file)
    if file is None or not Path(file).is_file():
        return None
    config = load_config_from_file(str(file))
    if not isinstance(config, ClusterConfig) or config.num_processes < 1:
        return None
    return config.num_processes, f"accelerate launch with num_processes: {config.num_processes} in {file}"


def _this_command() -> str:
    """What was started, without its Python: `-m package.module …` or `program.py …`."""
    words = list(sys.orig_argv[1:])
    while words and words[0].startswith("-") and words[0] != "-m":
        words.pop(0)
    return shlex.join(words)
