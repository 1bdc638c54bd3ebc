"""The workers of a launch, started as a launcher starts them, by environment alone, and never left behind.

They are forked from a process that has imported everything once, which takes them 0.1 s instead of four.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

# Seconds that no phase of a test takes, on a machine that does other work too.
PATIENCE = 100.0

RECIPE = """
name: small
model: {name: lenet_300_100, options: {inputs: 64}}
data: digits
training:
  steps: 60
  batch_size: 60
  evaluate_every: 20
  optimizer: {name: adam, lr: 0.0012, options: {fused: true}}
pruning: {rounds: 2, rate: 0.5, allocation: layerwise, rewind_to: 10}
backend: cpu
threads: 1
"""
# Longer than any test waits.
ENDLESS = ["--set", "training.steps=1000000"]

# accelerate imports DeepSpeed where it is installed.
_PRELOADED = [
    *("sparseflow_launchers.imp", "accelerate", "sklearn.datasets", "torch.distributed.fsdp", "torch._dynamo"),
    "deepspeed",
]


class Workers:
    """The processes of one launch."""

    def __init__(self, processes: Sequence[ForkServerProcess], folder: Path) -> None:
        self.processes, self._folder = processes, folder

    def wait(self, rank: int, seconds: float = PATIENCE) -> int:
        """The exit status of a rank; AssertionError where it does not end."""
        process = self.processes[rank]
        process.join(seconds)
        assert process.exitcode is not None, f"rank {rank} did not end: {self.log(rank)}"
        return process.exitcode

    def statuses(self) -> list[int]:
        """The exit statuses of all."""
        return [self.wait(rank) for rank in range(len(self.processes))]

    def signal(self, rank: int, number: int) -> None:
        """Sends a signal to a rank."""
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def log(self, rank: int) -> str:
        """What a rank has said so far."""
        return (self._folder / f"rank-{rank}.log").read_text()

    def errors(self, rank: int) -> list[str]:
        """The lines in which sparseflow complains."""
        return [line for line in self.log(rank).splitlines() if line.startswith("sparseflow: ")]


@contextmanager
def workers(
    folder: Path,
    *arguments: object,
    world: int = 2,
    each: Mapping[int, Sequence[object]] | None = None,
    before: Callable[[], None] | None = None,
    module: str = "sparseflow_launchers.imp",
) -> Iterator[Workers]:
    """Starts `python -m module recipe.yaml …` in the folder, so often; `each` gives arguments to single ranks.

    `before` is called in each of them first; a function of a module, for it is pickled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    port, processes = free_port(), []
    try:
        for rank in range(world):
            own = (each or {}).get(rank, ())
            argv = [module, "recipe.yaml", *map(str, arguments), *map(str, own)]
            process = context().Process(target=_work, args=(module, argv, folder, _places(rank, world, port), before))
            process.start()
            processes.append(process)
        yield Workers(processes, folder)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def run(folder: Path, *arguments: object, world: int = 2) -> Workers:
    """A launch that goes to its end, whatever that is."""
    with workers(folder, *arguments, world=world) as launched:
        launched.statuses()
    return launched


def until(condition: Callable[[], bool]) -> None:
    """Waits for it; AssertionError where it does not come."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "what this test waits for did not come"
        time.sleep(0.02)


def evaluations(out: Path) -> int:
    """How many evaluations a run has written down."""
    path = out / "metrics.jsonl"
    return path.read_text().count('"event": "step"') if path.exists() else 0


def stopped(out: Path) -> dict[str, Any]:
    """What stopped.json says."""
    found: dict[str, Any] = json.loads((out / "stopped.json").read_text())
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def context() -> Any:
    """Of processes that are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _places(rank: int, world: int, port: int) -> dict[str, str]:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(place) for name, place in places.items()}}


def _work(
    module: str, argv: list[str], folder: Path, environment: dict[str, str], before: Callable[[], None] | None
) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    log = os.open(f"rank-{environment['RANK']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # The server of forks ignores Ctrl-C; a worker does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if before is not None:
        before()
    sys.argv = argv
    runpy.run_module(module, run_name="__main__", alter_sys=True)
