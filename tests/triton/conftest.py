"""One process runs either Triton's interpreter or its compiler, whichever it has imported first.

So a bare `pytest` runs the compiled tests in its own process and the interpreted ones in another (`test_apart.py`), and
one under TRITON_INTERPRET=1 leaves the compiled ones out. A folder that is named on the command line is always run.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_FOLDERS = (_HERE / "compiled", _HERE / "interpreted")
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") != "0"
# The folder that is left out, and why.
_LEFT_OUT = (
    (_FOLDERS[0], "under TRITON_INTERPRET=1 nothing can be compiled")
    if _INTERPRETED
    else (_FOLDERS[1], "test_apart.py runs it in a process of its own")
)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    apart = _INTERPRETED and collection_path == _HERE / "test_apart.py"
    return True if apart or collection_path == _LEFT_OUT[0] else None


def pytest_collection_finish(session: pytest.Session) -> None:
    kinds = {folder for item in session.items for folder in _FOLDERS if folder in item.path.parents}
    if len(kinds) > 1:
        raise pytest.UsageError("tests/triton/compiled and interpreted need a process each: run tools/areas.py triton")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    asked = [config.invocation_params.dir / argument.partition("::")[0] for argument in config.args]
    if any(_HERE.is_relative_to(path) for path in asked):
        folder, reason = _LEFT_OUT
        terminalreporter.write_line(f"{folder.relative_to(config.rootpath)} left out: {reason}")
