"""What several processes cost beyond torch itself: a step under DDP, and a checkpoint on the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sparseflow.bench.clock import REPEATS, ratios, take_turns
from sparseflow.bench.figure import Figure
from sparseflow.files.commit import commit
from sparseflow.files.part import tensors_part

_CHECKPOINT = 100_000_000


def launches() -> list[Figure]:
    """The figures of this file."""
    return [ddp_step("lenet"), ddp_step("mlp"), checkpoint()]


def ddp_step(network: str) -> Figure:
    """A step through Trainer over one of bare torch DDP, the same network in both, on two processes of one thread."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        command = ["torch.distributed.run", "--nproc_per_node", "2", "-m", "sparseflow.bench.ddp_worker"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", *command, network, str(out)], check=True, env=environment)
        sides = {side: tuple(samples) for side, samples in json.loads(out.read_text()).items()}
    return Figure(
        f"{network}: step on 2 processes through Trainer / bare DDP",
        "x",
        1.05,
        False,
        ratios(sides["ours"], sides["bare"]),
        seconds=sides,
    )


def checkpoint(numbers: int = _CHECKPOINT) -> Figure:
    """Committing float32 tensors with sha256 over torch.save and fsync of the same; the sizes of a small model's."""
    tensors = {f"{index}.weight": torch.randn(numbers // 10) for index in range(10)}
    with TemporaryDirectory(dir=Path.cwd()) as folder:
        place = Path(folder)

        def plain() -> None:
            with (place / "plain.pt").open("wb") as file:
                torch.save(tensors, file)
                file.flush()
                os.fsync(file.fileno())

        def ours() -> None:
            commit(place / "ours", lambda: {"state.safetensors": tensors_part(tensors)})

        sides = take_turns({"ours": ours, "plain": plain}, REPEATS)
    name = f"commit of {4 * numbers / 1e6:.0f} MB with sha256 / torch.save and fsync"
    return Figure(name, "x", 1.15, False, ratios(sides["ours"], sides["plain"]), seconds=sides)
