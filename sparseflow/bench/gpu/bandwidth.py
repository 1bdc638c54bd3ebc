"""Bytes a second that the chip's L2 and its memory deliver: two of the limits in the cost model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sparseflow.bench.gpu.point import Point, Ready, Side, Verdict, measure
from sparseflow.bench.gpu.setting import Setting

_MEMORY = 2**30
# Bytes read in one launch, so that launching weighs little.
_READ = 2**30
_PROGRAMS_A_MULTIPROCESSOR = 8


def bandwidth(setting: Setting) -> Iterator[Point]:
    """A copy in memory, and reads of pieces of which some fit in L2."""
    if not setting.timed:
        yield from measure([_l2(setting, 2**13, 2**14, 3)], 1, False)
        return
    programs = _PROGRAMS_A_MULTIPROCESSOR * torch.cuda.get_device_properties(setting.device).multi_processor_count
    yield from measure([_copy(setting, _MEMORY)], 1, True)
    for share in (6, 3, 2):
        yield from measure([_l2(setting, setting.l2 // share // 4096 * 4096, _READ, programs)], 1, True)


def _copy(setting: Setting, nbytes: int) -> Side:
    x = setting.normal(nbytes // 4)
    y = torch.full_like(x, float("nan"))
    point = _point("copy in memory, read and written", x, 2 * nbytes)

    def verdict() -> Verdict:
        y.copy_(x)
        return ("ok", 0.0) if torch.equal(x, y) else ("the copy differs", float("inf"))

    return Side(point, lambda: Ready(lambda number: y.copy_(x), verdict))


def _l2(setting: Setting, nbytes: int, total: int, programs: int) -> Side:
    # Imports triton, which a run without this section need not have.
    from sparseflow_kernels.triton_read import read

    x = setting.normal(nbytes // 4)
    rounds = max(1, total // nbytes)

    def launch(number: int) -> Tensor:
        return read(x, rounds, programs)

    def verdict() -> Verdict:
        expected = rounds * x.double().sum()
        error = float((launch(0).double().sum() - expected).abs() / (rounds * x.double().abs().sum()))
        return ("ok" if error < 1e-6 else f"the sum is off by {error:.1e}"), error

    return Side(_point("read again and again", x, rounds * nbytes), lambda: Ready(launch, verdict))


def _point(side: str, x: Tensor, moved: int) -> Point:
    size = f"{x.nbytes / 2**20:.1f} MiB"
    return Point("bandwidth", side, "read", "fp32", 1.0, (1, x.numel(), 1), config=size, moved=moved)
