"""What is promised about speed on a GPU, held against the points of one run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparseflow.bench.clock import ratios
from sparseflow.bench.figure import Figure
from sparseflow.bench.gpu.point import Point


@dataclass(frozen=True)
class _Speed:
    floor: float
    aim: float | None = None


# By dtype and density: a whole step on the better of `dense` and `dense-compact`, over ours. Promised for an H100,
# layers of at least 4096, 8192 tokens.
STEPS: dict[tuple[str, float], _Speed] = {
    ("fp32", 0.1): _Speed(1.5, 2.5),
    ("fp32", 0.05): _Speed(3, 5),
    ("fp32", 0.01): _Speed(12, 20),
    ("fp32", 0.005): _Speed(25, 40),
    ("bf16", 0.1): _Speed(0.98),
    ("bf16", 0.05): _Speed(0.98),
    ("bf16", 0.02): _Speed(0.98),
    ("bf16", 0.01): _Speed(1.2),
    ("bf16", 0.005): _Speed(1.8),
    ("bf16", 0.001): _Speed(5),
}
_CSR_FLOOR = 4.0
_PACK_LIMIT = 20.0
_REFRESH_LIMIT = 0.05


def promises(points: Sequence[Point], timed: bool) -> list[Figure]:
    """The figures of a run. Without times they say so, unless a result is wrong."""
    wrong = [
        Figure(f"{point.side}, {point.product}, {point.dtype} at {point.density:.1%}", "", None, True, (), point.check)
        for point in points
        if point.ours and point.check != "ok"
    ]
    return [*_steps(points, timed), *_against_csr(points, timed), *_packing(points, timed), *wrong]


def _steps(points: Sequence[Point], timed: bool) -> list[Figure]:
    figures = []
    for (dtype, density), speed in STEPS.items():
        name = f"{dtype} step at {_sparse(density)}: dense / ours"
        here = [p for p in points if (p.section, p.dtype, p.density) == ("step", dtype, density)]
        dense = _best(p for p in here if p.side in ("dense", "dense-compact"))
        # That nothing is ever slower than dense is promised of what a plan chooses.
        ours = _best(p for p in here if p.side == ("planned" if speed.floor < 1 else "triton"))
        figures.append(_ratio(name, speed.floor, dense, ours, timed, speed.aim))
    return figures


def _against_csr(points: Sequence[Point], timed: bool) -> list[Figure]:
    here = [point for point in points if point.section == "torch-sparse"]
    places = dict.fromkeys((point.dtype, point.density) for point in here)
    figures = []
    for dtype, density in places:
        beside = [point for point in here if (point.dtype, point.density) == (dtype, density)]
        csr = _best(point for point in beside if point.side == "torch CSR")
        ours = _best(point for point in beside if point.ours)
        name = f"{dtype} forward at {_sparse(density)}: torch CSR / ours"
        figures.append(_ratio(name, _CSR_FLOOR, csr, ours, timed))
    return figures


def _packing(points: Sequence[Point], timed: bool) -> list[Figure]:
    figures = []
    for point in (p for p in points if p.section == "packing" and p.product == "pack"):
        name = f"packing a new mask at {_sparse(point.density)}, {point.side.removeprefix('triton ')}"
        samples = tuple(1e3 * seconds for seconds in point.seconds)
        absent = "" if samples or point.check != "ok" else point.absent or _why_not(timed)
        figures.append(Figure(name, "ms", _PACK_LIMIT, False, samples, point.check, absent=absent))
    for point in (p for p in points if p.section == "packing" and p.product == "refresh"):
        steps = (p for p in points if (p.section, p.side) == ("step", "triton"))
        step = _best(p for p in steps if (p.dtype, p.density) == (point.dtype, point.density))
        name = f"{point.dtype} refresh at {_sparse(point.density)}, of a step"
        figures.append(_ratio(name, _REFRESH_LIMIT, point, step, timed, at_least=False))
    return figures


def _ratio(
    name: str,
    limit: float,
    slow: Point | None,
    fast: Point | None,
    timed: bool,
    aim: float | None = None,
    at_least: bool = True,
) -> Figure:
    for point in (fast, slow):
        if point is not None and point.check != "ok":
            check = point.check if point.ours else "ok"
            absent = "" if point.ours else f"{point.side} is wrong here: {point.check}"
            return Figure(name, "x", limit, at_least, (), check, aim, absent)
    if slow is None or fast is None or not slow.seconds or not fast.seconds:
        reasons = [point.absent for point in (fast, slow) if point is not None and point.absent]
        return Figure(name, "x", limit, at_least, (), aim=aim, absent=next(iter(reasons), _why_not(timed)))
    seconds = {slow.side: slow.seconds, fast.side: fast.seconds}
    return Figure(name, "x", limit, at_least, ratios(slow.seconds, fast.seconds), aim=aim, seconds=seconds)


def _best(points: Iterable[Point]) -> Point | None:
    """The fastest; one that is wrong only where no other is there."""
    found = list(points)
    timed = [point for point in found if point.time is not None]
    return min(timed, key=lambda point: point.time or 0.0) if timed else next(iter(found), None)


def _why_not(timed: bool) -> str:
    return "not reached in this run" if timed else "no GPU"


def _sparse(density: float) -> str:
    return f"{100 * (1 - density):g} % sparse"
