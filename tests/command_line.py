"""`sparseflow …` in this process: its exit status and what it printed."""

import gc
import sys
from dataclasses import dataclass

import pytest
import torch

from sparseflow import cli


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """What a wrong input printed: one line, and no traceback."""
        assert self.status == 2 and self.err.startswith("sparseflow: ")
        assert self.err.count("\n") == 1 and self.out == ""
        return self.err


class CommandLine:
    """Runs commands, on one thread and without full garbage collections."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, *arguments: object) -> Said:
        threads = torch.get_num_threads()
        self.capfd.readouterr()
        with self.monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["sparseflow", *map(str, arguments)])
            patched.setattr(sys, "path", list(sys.path))
            patched.setattr(gc, "collect", lambda generation=2: 0)
            with pytest.raises(SystemExit) as exit:
                torch.set_num_threads(1)
                cli.main()
        torch.set_num_threads(threads)
        printed = self.capfd.readouterr()
        status = exit.value.code
        return Said(status if isinstance(status, int) else 0, printed.out, printed.err)
