"""Real launches for tests: a script imports torch once and forks the workers of every launch from there.

Forking is safe because nothing has run on several threads before it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).parent.parent
_SECONDS = 120


def launch(world: int, folder: Path, work: Callable[[int], Any]) -> list[Any]:
    """What `work(rank)` returns, plain JSON data, on each of so many ranks of a gloo group. None is left behind."""
    workers = []
    for rank in range(world):
        worker = os.fork()
        if worker == 0:
            _work_and_exit(rank, world, folder, work)
        workers.append(worker)
    statuses = [os.waitpid(worker, 0)[1] for worker in workers]
    if any(statuses):
        raise RuntimeError(f"world {world}: the workers ended with {statuses}")
    return [json.loads((folder / f"{world}-{rank}.json").read_text()) for rank in range(world)]


def run_script(script: Path, folder: Path) -> Any:
    """The JSON that a script prints, given a folder; it sees the packages and the modules of tests as pytest does."""
    roots = [ROOT, ROOT / "kernels", ROOT / "launchers", ROOT / "tests"]
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots))},
        stdout=subprocess.PIPE,
        timeout=4 * _SECONDS,
        check=True,
    )
    return json.loads(done.stdout)


def _work_and_exit(rank: int, world: int, folder: Path, work: Callable[[int], Any]) -> None:
    # A rank that waits for one that has died ends by itself.
    signal.alarm(_SECONDS)
    status = 1
    try:
        torch.set_num_threads(1)
        store = dist.FileStore(str(folder / f"store-{world}"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        (folder / f"{world}-{rank}.json").write_text(json.dumps(work(rank)))
        dist.destroy_process_group()
        status = 0
    except BaseException:
        # Nobody above sees what ends a forked process.
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
