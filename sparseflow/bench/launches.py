"""What several processes cost beyond torch itself: a step under DDP, and a checkpoint on the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from sparseflow.bench.clock import ratios
from sparseflow.bench.figure import Figure
from sparseflow.bench.saving import saving


def launches() -> list[Figure]:
    """The figures of this file."""
    return [ddp_step("lenet"), ddp_step("mlp"), *saving(Path.cwd())]


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
