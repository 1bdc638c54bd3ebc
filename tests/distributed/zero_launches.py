"""Launches under DeepSpeed for the tests: each file of tests asks for all of its own at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Seconds. The first launch on a machine compiles a small library, which took up to 90 s on two busy cores.
_COMPILES = 240


@dataclass(frozen=True)
class Ended:
    """How a launch ended: each rank's status, None where it had to be killed, and what all of them printed."""

    statuses: list[int | None]
    seconds: float
    log: str


def launch_all(launches: list[dict[str, Any]], folder: Path) -> list[Ended]:
    """Runs launches one after the other; see `zero_zygote`. Skips where there is no compiler."""
    if shutil.which("g++") is None:
        pytest.skip("DeepSpeed compiles a small library when it is first used without a GPU, and there is no g++")
    for number, launch in enumerate(launches):
        launch.setdefault("log", str(folder / f"launch-{number}.log"))
    launches[0]["timeout"] = launches[0].get("timeout", 60) + _COMPILES
    places = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "launchers")]
    process = subprocess.Popen(
        [sys.executable, str(HERE / "zero_zygote.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        start_new_session=True,
    )
    try:
        answer, errors = process.communicate(json.dumps(launches), timeout=_COMPILES + 60 * len(launches))
    finally:
        _kill(process)
    assert process.returncode == 0, errors[-3000:]
    return [Ended(**one) for one in json.loads(answer)]


def _kill(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
