"""Launches of several processes, one after the other, from one process that has imported everything once.

Run as a program: reads lists of launches, a line of JSON each, and answers each line with one that says how they
ended. Importing torch and DeepSpeed takes seconds, a fork of who has done it milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", TORCHINDUCTOR_COMPILE_THREADS="1")

import zero_jobs
from launching import free_port


def main() -> None:
    """Runs every launch that is asked for, and says how long it took and with what status each rank ended."""
    answers = sys.stdout
    # Only answers go where answers are awaited.
    sys.stdout = sys.stderr
    zero_jobs.warm_up()
    for line in sys.stdin:
        answers.write(json.dumps([_launch(one) for one in json.loads(line)]) + "\n")
        answers.flush()


def _launch(launch: dict[str, Any]) -> dict[str, Any]:
    port, began = free_port(), time.monotonic()
    log = Path(launch["log"])
    children = [_fork(rank, port, launch, log) for rank in range(launch["world"])]
    deadline = began + launch.get("timeout", 60.0)
    statuses: dict[int, int] = {}
    while len(statuses) < len(children) and time.monotonic() < deadline:
        for rank, child in enumerate(children):
            if rank not in statuses:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    statuses[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for rank, child in enumerate(children):
        if rank not in statuses:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    seconds = time.monotonic() - began
    return {
        "statuses": [statuses.get(rank) for rank in range(len(children))],
        "seconds": seconds,
        "log": log.read_text(),
    }


def _fork(rank: int, port: int, launch: dict[str, Any], log: Path) -> int:
    child = os.fork()
    if child:
        return child
    world = str(launch["world"])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=world, LOCAL_WORLD_SIZE=world)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.__stdout__ or sys.stderr
        zero_jobs.JOBS[launch["job"]](**launch["arguments"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        # Not by way of pytest's, or anybody's, exit handlers.
        os._exit(status)


if __name__ == "__main__":
    main()
