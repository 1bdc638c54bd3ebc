"""A search whose processes are killed at points that have a name, or at any instant, and started again.

Killed by SIGKILL: nothing of the process is run any more, no handler, no `finally`. A point that was reached leaves a
mark, so that a test which kills nobody shows.
"""

from __future__ import annotations

import functools
import gc
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch
import torch.distributed as dist
from crash_points import arm
from launching import context
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.data import Data, TensorSplit
from sparseflow.hardware.streaming.store import Store
from sparseflow.ranks import current
from sparseflow.training.agreement import Pulse
from sparseflow.training.controls import train_control
from sparseflow.training.progress import Progress
from sparseflow.training.records import Records
from sparseflow.training.streaming import Streaming
from sparseflow.training.trainer import Trainer

# Seconds that no launch takes, and that the others of one that was killed get to notice.
_PATIENCE = 60.0
_GRACE = 1.0


@dataclass(frozen=True)
class Point:
    """Where rank 0 is when the `victims` are killed: before or after the call of that number of a function."""

    function: str
    when: str
    number: int
    victims: tuple[int, ...] = (0,)

    def on(self, *victims: int) -> Point:
        """The same point for others."""
        return replace(self, victims=victims)


# Beside rank 0 alone. It goes on where it is for a moment, when rank 1 is killed.
_OTHER, _BOTH = (1,), (0, 1)

POINTS = {
    "theta_0 is kept": Point("sparseflow.training.records:Records.begin", "after", 0),
    "a step is done": Point("sparseflow.training.engines:Replicated.step", "after", 4, _OTHER),
    "an evaluation begins": Point("sparseflow.training.steps:evaluate", "before", 2, _BOTH),
    "the rewind point is reached": Point("sparseflow.training.search:_mark", "before", 0, _OTHER),
    "the rewind point is put aside": Point("os:rename", "after", 2),
    "the rewind point is marked": Point("sparseflow.training.search:_mark", "after", 0, _BOTH),
    "a file is begun": Point("sparseflow.files.commit:_write", "before", 14, _OTHER),
    "a file is half written": Point("sparseflow.files.commit:_Hashing.write", "after", 60),
    "a file is not on the disk": Point("os:fsync", "before", 14),
    "a file is on the disk": Point("os:fsync", "after", 21),
    "a manifest is to be written": Point("sparseflow.files.commit:_publish", "before", 4, _OTHER),
    "a directory is to be renamed": Point("os:rename", "before", 7, _BOTH),
    "a directory is renamed": Point("os:rename", "after", 8),
    "a checkpoint is saved": Point("sparseflow.training.progress:Progress.save", "after", 4, _OTHER),
    "an old checkpoint is to go": Point("sparseflow.files.shelf:remove", "before", 0),
    "an old checkpoint is half gone": Point("os:unlink", "after", 3, _BOTH),
    "a round has its weights alone": Point("sparseflow.training.records:Records._finish", "before", 1, _BOTH),
    "a round is done": Point("sparseflow.training.records:Records.finish_round", "after", 1),
    "pruning begins": Point("sparseflow.training.pruning:Pruning.__call__", "before", 1, _BOTH),
    "masks are made": Point("sparseflow.training.pruning:Pruning.__call__", "after", 0, _OTHER),
    "the model is rewound": Point("sparseflow.training.search:load_dense_state", "after", 0),
    "a plan is kept": Point("sparseflow.training.records:Records.keep_plan", "after", 1, _OTHER),
    "the model is sparse": Point("sparseflow.training.search:sparsify", "after", 1, _BOTH),
    "a control is trained": Point("sparseflow.training.records:Records.finish", "before", 0, _BOTH),
}

_STREAMING = "sparseflow.hardware.streaming"

# Of a search that streams, beside those.
STREAM_POINTS = {
    "a store is made but for its manifest": Point(f"{_STREAMING}.store_manifest:Manifest.write", "before", 0),
    "a store is made": Point(f"{_STREAMING}.store_manifest:Manifest.write", "after", 0),
    "weights are half updated": Point(f"{_STREAMING}.store_parameter:StoredParameter._put", "after", 40),
    "a gradient has come": Point(f"{_STREAMING}.optimizer:StoreOptimizer.receive", "after", 9),
    "a checkpoint is saved and the store is not": Point("sparseflow.training.progress:Progress.save", "after", 1),
    "one file of a commit is flushed": Point(f"{_STREAMING}.slots:MappedFile.sync", "after", 9),
    "a store's manifest is to be renamed": Point("os:replace", "before", 2),
    "a store's manifest is renamed": Point("os:replace", "after", 3),
    "a checkpoint and its commit are done": Point("sparseflow.training.steps:commit_weights", "after", 2),
    "a store is rewound": Point("sparseflow.training.search:load_dense_state", "after", 0),
    "one layer has its mask": Point(f"{_STREAMING}.store:Store.remask", "after", 0),
    "the optimizer begins anew": Point(f"{_STREAMING}.execution:Stream.renew", "after", 1),
    "the best weights are in the store": Point("sparseflow.training.steps:Training._test", "before", 3),
    "a round is recorded and the store is not": Point("sparseflow.training.records:Records.finish_round", "after", 1),
    "a control is half trained": Point("sparseflow.training.steps:commit_weights", "after", 7),
    "a control is done and the weights are back": Point("sparseflow.training.controls:commit_weights", "before", 0),
}


class Net(nn.Module):
    """8 inputs, 16 hidden units, 3 classes, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(torch.dropout(torch.relu(self.fc1(x)), 0.2, self.training))
        return out


def search(folder: Path) -> None:
    """Two rounds of 8 steps, rewound to step 3, and a control; a checkpoint at every second step."""
    _search(folder, None, "dense-compact")


def search_streamed(folder: Path) -> None:
    """The same on a model whose weights are in a store beside the folder."""
    _search(folder, Streaming(store_of(folder)), "stream")


def store_of(folder: Path) -> Path:
    """Of the search in a folder."""
    return folder.with_suffix(".weights")


def weights_in(folder: Path) -> dict[str, list[float]]:
    """What the store of a search was committed with last, by name."""
    with Store.open(store_of(folder)) as store:
        return {name: store.read(name).view(-1).tolist() for name in store.names}


def _search(folder: Path, stream: Streaming | None, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    splits = [TensorSplit(torch.randn(n, 8, generator=generator), torch.arange(n) % 3) for n in (48, 24, 24)]
    trainer = Trainer(
        Net,
        Data("noise", "classification", *splits, classes=3, input_shape=(8,)),
        optimizer=functools.partial(torch.optim.Adam, lr=0.01),
        steps=8,
        batch_size=16,
        evaluate_every=2,
        seed=1,
        stream=stream,
    )
    records = Records(folder, ranks=current())
    tickets = list(sf.imp(trainer, rounds=2, rate=0.5, floor=1, rewind_to=3, backend=backend, records=records))
    rewind_point = records.rewind_point(trainer.device)
    assert rewind_point is not None
    if records.metrics(2, "shuffle") is None:
        train_control(trainer, tickets[2], "shuffle", rewind_point, records)
    trainer.close()


@dataclass(frozen=True)
class Ended:
    """How a launch ended: each rank's exit status (negative: by that signal), and whether the point was reached."""

    statuses: list[int]
    reached: bool

    @property
    def well(self) -> bool:
        """Whether the search is done."""
        return not any(self.statuses)


# A search in a folder, begun or gone on with.
Work = Callable[[Path], None]


def launch(folder: Path, world: int, point: Point | None = None, work: Work = search) -> Ended:
    """Starts the search in `folder`, or goes on with it, and waits for its end."""
    return _ended(_start(folder, world, point, work), folder)


def launch_and_kill(folder: Path, world: int, victims: Sequence[int], seconds: float, work: Work = search) -> Ended:
    """As `launch`; the victims are killed after so many seconds from the first step of any of them on."""
    processes = _start(folder, world, None, work)
    begun = folder.with_suffix(".begun")
    deadline = time.monotonic() + _PATIENCE
    while not begun.exists() and all(process.is_alive() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(seconds)
    for rank in victims:
        processes[rank].kill()
    return _ended(processes, folder)


def random_kills(folder: Path, world: int, count: int, seed: int, seconds: float, work: Work = search) -> int:
    """Kills a search again and again at random instants within so many seconds; how many of them hit it."""
    draw, hits = random.Random(seed), 0
    for _ in range(count):
        victims = draw.choice([(0,), (world - 1,), tuple(range(world))])
        hits += not launch_and_kill(folder, world, victims, draw.uniform(0, seconds), work).well
    return hits


def _start(folder: Path, world: int, point: Point | None, work: Work) -> list[ForkServerProcess]:
    for name in (".begun", ".reached", ".store", *(f".pid-{rank}" for rank in range(world))):
        folder.with_suffix(name).unlink(missing_ok=True)
    processes = [context().Process(target=_work, args=(rank, world, folder, point, work)) for rank in range(world)]
    for process in processes:
        process.start()
    return processes


def _ended(processes: list[ForkServerProcess], folder: Path) -> Ended:
    try:
        deadline = time.monotonic() + _PATIENCE
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
            if any(process.exitcode for process in processes):
                deadline = min(deadline, time.monotonic() + _GRACE)
            next(process for process in processes if process.is_alive() or process is processes[-1]).join(0.02)
        statuses = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
    # A launcher kills those that do not notice that one of them has gone.
    return Ended([-signal.SIGKILL if status is None else status for status in statuses], _reached(folder).exists())


def _work(rank: int, world: int, folder: Path, point: Point | None, work: Work) -> None:
    log = os.open(folder.with_suffix(f".log-{rank}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "LOCAL_WORLD_SIZE": str(world)}
    # A process that is killed takes nothing with it that the system has: only a power cut would.
    os.fsync = lambda descriptor: None
    # Always at the same steps, so that the calls of a function can be counted.
    Pulse.due = lambda self, done: False  # type: ignore[method-assign]
    Progress.due = lambda self: True  # type: ignore[method-assign]
    # What is imported stays: looking through all of it again and again would be most of the time.
    gc.freeze()
    folder.with_suffix(f".pid-{rank}").write_text(str(os.getpid()))
    if world > 1:
        store = f"file://{folder.with_suffix('.store')}"
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=_PATIENCE)
        )
    folder.with_suffix(".begun").touch()
    if rank == 0 and point is not None:
        arm(point.function, point.when, point.number, lambda: _kill(point, folder))
    work(folder)
    if world > 1:
        dist.destroy_process_group()


def _kill(point: Point, folder: Path) -> None:
    os.close(os.open(_reached(folder), os.O_CREAT | os.O_EXCL))
    # This process last, if at all.
    for rank in sorted(point.victims, reverse=True):
        os.kill(int(folder.with_suffix(f".pid-{rank}").read_text()), signal.SIGKILL)


def _reached(folder: Path) -> Path:
    return folder.with_suffix(".reached")
