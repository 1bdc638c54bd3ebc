"""What every worker of a launch does first and last: meet the others, agree that all want the same, end for all."""

from __future__ import annotations

import functools
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

import sparseflow
from sparseflow.atomic import atomic_write
from sparseflow.ranks import ALONE, Ranks, RanksDifferError, current
from sparseflow.recipes import Recipe
from sparseflow.training.trainer import Stopped
from sparseflow.workers import STOPPED
from sparseflow_launchers.launch import asked_processes, check_world
from sparseflow_launchers.watch import FOLLOWED, Watch, complain, meet

_NO_LAUNCHER = (
    "expected to be started by a launcher, which sets RANK and WORLD_SIZE: torchrun --nproc_per_node 2 -m "
    "sparseflow_launchers.imp RECIPE; for one process use `sparseflow run RECIPE`"
)

# What is noted when a launch ends before its time: status, reason, step.
Note = Callable[[int, str, int | None], None]


class Launch:
    """The processes of a launch, and the watch over them."""

    def __init__(self, ranks: Ranks, watch: Watch) -> None:
        self.ranks, self.watch = ranks, watch
        # Writes stopped.json, as soon as there is a folder for it.
        self.note: Note = lambda status, reason, step: None


@contextmanager
def launched(timeout: float, processes: int | None) -> Iterator[Launch]:
    """Joins the launch that the environment tells of, and ends the process with the status that its end deserves."""
    launch = None
    try:
        if "RANK" not in os.environ:
            _be_the_only_one(asked_processes(processes))
        launch = _join(timeout)
        check_world(asked_processes(processes), launch.ranks.world)
        yield launch
    except Stopped:
        _leave(launch, STOPPED, "was stopped by a signal")
    except (ValueError, TypeError) as error:
        _end_with(launch, 2, str(error))
    except (FloatingPointError, RanksDifferError, OSError) as error:
        _end_with(launch, 1, str(error))
    except RuntimeError as error:
        # gloo and NCCL raise it where a connection breaks, and so does much else.
        _end_if_lost(launch)
        _end_with_trace(launch, error)
    except Exception as error:  # Whatever it is, the others must hear of it, or they wait for this rank.
        _end_with_trace(launch, error)
    launch.watch.close()
    if launch.ranks.world > 1:
        dist.destroy_process_group()


def check_same_input(ranks: Ranks, recipe: Recipe, engine: str) -> None:
    """`ValueError` unless all ranks have the same recipe, versions and engine."""
    mine = {
        "recipe": recipe.model_dump(mode="json"),
        "sparseflow": sparseflow.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "engine": engine,
    }
    everybody = ranks.gather(mine)
    for rank, other in enumerate(everybody):
        differing = [key for key in mine if other[key] != everybody[0][key]]
        if differing:
            raise ValueError(
                f"rank {rank} has another {', '.join(differing)} than rank 0; start all processes with the same "
                "command and the same installation"
            )


def check_shared(ranks: Ranks, folder: Path) -> None:
    """`ValueError` unless every rank sees what rank 0 writes into the folder."""
    token = ranks.broadcast(os.urandom(8).hex())
    path = folder / f".seen-{token}"

    def write() -> None:
        with atomic_write(path) as file:
            file.write(token.encode())

    ranks.first(write)
    blind = [rank for rank, sees in enumerate(ranks.gather(path.exists())) if not sees]
    ranks.first(path.unlink)
    if blind:
        raise ValueError(
            f"--out: rank {', '.join(map(str, blind))} does not see what rank 0 writes into {folder}; give a folder "
            "that all nodes share"
        )


def _be_the_only_one(asked: tuple[int, str] | None) -> None:
    check_world(asked, 1)
    if asked is None:
        raise ValueError(_NO_LAUNCHER)
    # `accelerate launch` tells a process that it starts alone nothing of ranks. Port 0: any that is free.
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")


def _join(timeout: float) -> Launch:
    store, rank, world = _meet(timeout)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend,
        store=PrefixStore("gradients", store),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout),
    )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    launch = Launch(current() if world > 1 else ALONE, Watch(store, rank, world, timeout))
    launch.watch.on_hang = functools.partial(_give_up, launch)
    return launch


def _give_up(launch: Launch, reason: str) -> None:
    complain(f"{reason}; what was saved is kept: go on with --resume")
    launch.note(1, reason, None)


def _meet(timeout: float) -> tuple[Store, int, int]:
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    # Its own timeout does not count while whoever listens there is none of us, and says nothing.
    guard = threading.Timer(timeout + 3, _nobody_there, (where, timeout))
    guard.daemon = True
    guard.start()
    try:
        return meet(timeout)
    except dist.DistNetworkError as error:
        raise ValueError(
            f"cannot meet the other processes at {where} (MASTER_ADDR:MASTER_PORT): {error}; is the port taken? Choose "
            "another"
        ) from None
    except dist.DistStoreError as error:
        raise ValueError(f"not all processes came within {timeout:.0f} s: {error}; look at the other nodes") from None
    finally:
        guard.cancel()


def _nobody_there(where: str, timeout: float) -> None:
    rank = os.environ["RANK"]
    complain(f"rank {rank} met nobody at {where} (MASTER_ADDR:MASTER_PORT) within {timeout:.0f} s; is the port taken?")
    os._exit(2)


def _end_if_lost(launch: Launch | None) -> None:
    _finish_speaking()
    lost = launch.watch.lost() if launch is not None else None
    if launch is None or lost is None:
        return
    if lost.speaks:
        _give_up(launch, f"{lost.text}; rank {launch.ranks.rank} noticed it in: {launch.watch.phase}")
    _leave(launch, 1, FOLLOWED)


def _end_with(launch: Launch | None, status: int, text: str) -> NoReturn:
    _finish_speaking()
    # An error that all have is said once, by rank 0; one that only this rank has, by this rank.
    if launch is None:
        complain(text)
    elif launch.ranks.main or not launch.watch.main_says(text):
        complain(text if launch.ranks.main else f"rank {launch.ranks.rank}: {text}")
        launch.note(status, text, None)
    _leave(launch, status, f"ended with: {text}")


def _finish_speaking() -> None:
    # torchrun ends the others as soon as it sees that one has ended: before they could say what happened.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _end_with_trace(launch: Launch | None, error: Exception) -> NoReturn:
    traceback.print_exc()
    _leave(launch, 1, f"ended with: {type(error).__name__}: {error}")


def _leave(launch: Launch | None, status: int, how: str) -> NoReturn:
    if launch is not None:
        launch.watch.close(how)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by way of destructors, which would wait for connections to ranks that are gone.
    os._exit(status)
