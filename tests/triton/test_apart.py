"""The interpreted tests in a process of their own, for whoever runs all in one. tools/areas.py runs them itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_interpreted_tests_pass_in_another_process() -> None:
    folder, environment = Path(__file__).parent / "interpreted", {**os.environ, "TRITON_INTERPRET": "1"}
    # Of a pytest-xdist worker that this may run in.
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
