"""Launches under DeepSpeed for the tests: each file of tests asks for all of its own at once."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Seconds. The first time on a machine it compiles a small library, which took up to 180 s on two busy cores.
_COMPILES = 400


@dataclass(frozen=True)
class Ended:
    """How a launch ended: each rank's status, None where it had to be killed, and what all of them printed."""

    statuses: list[int | None]
    seconds: float
    log: str


class Zygote:
    """A process of `zero_zygote`, until closed."""

    def __init__(self, errors: IO[str]) -> None:
        places = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "launchers")]
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "zero_zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
            start_new_session=True,
        )

    def launch(self, launches: dict[str, dict[str, Any]], folder: Path) -> dict[str, Ended]:
        """Runs launches one after the other: "world", "job" and its "arguments". How they ended, by the same names."""
        asked = [{"log": str(folder / f"{name}.log"), "timeout": 60.0, **launch} for name, launch in launches.items()]
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()
        limit = _COMPILES + sum(one["timeout"] for one in asked)
        assert select.select([stdout], [], [], limit)[0], "the launches have not ended in time"
        answer = stdout.readline()
        assert answer, "the zygote has died; see its standard error"
        return {name: Ended(**one) for name, one in zip(launches, json.loads(answer), strict=True)}

    def close(self) -> None:
        """Ends it, and whatever it may have left."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
