"""In place of a GPU, for the tests of its bench: a clock, and points that have been measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparseflow.bench.gpu import clock
from sparseflow.bench.gpu.point import Point

SIZE = (4096, 4096, 8192)


class Gpu:
    """In place of a GPU: a launch takes what it adds to `now`, in milliseconds; `broken`: what capturing raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: str = "") -> None:
        self.now, self.broken = 0.0, broken
        monkeypatch.setattr(clock, "_milliseconds", self.milliseconds)
        monkeypatch.setattr(clock, "capture", self.capture)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def milliseconds(self, run: Callable[[], object]) -> float:
        before = self.now
        run()
        return self.now - before

    def capture(self, run: Callable[[], object]) -> Callable[[], object]:
        if self.broken:
            raise RuntimeError(self.broken)
        return run


def timed_point(section: str, side: str, seconds: float, density: float = 0.1, **more: Any) -> Point:
    values = {"product": "step", "dtype": "fp32", "shape": SIZE, "seconds": (seconds,) * 9, **more}
    return Point(section=section, side=side, density=density, **values)
