"""Started by torchrun itself, which has ideas of its own about what to do with workers when one of them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from launching import ENDLESS, PATIENCE, RECIPE, evaluations, stopped, until

ROOT = Path(__file__).parents[2]


@contextmanager
def torchrun(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Two workers under torchrun, whose output goes to a log; none is left behind."""
    (folder / "recipe.yaml").write_text(RECIPE)
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "launchers")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "sparseflow_launchers.imp", "recipe.yaml", "--out", "run", *arguments]
    with (folder / "log").open("wb") as log:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        launch = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield launch
    finally:
        workers = psutil.Process(launch.pid).children(recursive=True) if launch.poll() is None else []
        for process in (launch, *workers):
            process.kill()
        launch.wait()


def test_a_killed_worker_is_named_and_no_process_left(tmp_path: Path) -> None:
    with torchrun(tmp_path, *ENDLESS) as launch:
        until(lambda: evaluations(tmp_path / "run") > 1)
        victim, survivor = psutil.Process(launch.pid).children()
        victim.send_signal(signal.SIGKILL)
        assert launch.wait(PATIENCE) == 1
        assert not survivor.is_running()
    assert "died or hangs (seed 1, round 0, step " in stopped(tmp_path / "run")["reason"]


def test_a_signal_to_torchrun_stops_all(tmp_path: Path) -> None:
    with torchrun(tmp_path, *ENDLESS) as launch:
        until(lambda: evaluations(tmp_path / "run") > 1)
        launch.send_signal(signal.SIGTERM)
        assert launch.wait(PATIENCE) == 1
    assert stopped(tmp_path / "run")["status"] == 75
