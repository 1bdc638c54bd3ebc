"""The promises about speed and memory, measured on this machine: `sparseflow bench`.

Everything is compared within one process run: the sides of a ratio take turns, the median of at least seven repeats
is shown with its quartiles, and a promise counts as missed where even the better quartile misses it. Before
anything is timed its result is checked; a path whose check fails shows no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sparseflow.bench.figure import Figure
from sparseflow.bench.run import GROUPS, run_bench

__all__ = ["GROUPS", "Bench", "Figure", "bench_of", "run_bench"]


class Bench(Protocol):
    """Measures all groups, or those named in `only`: `show` gets the text, and `save` all data, as they come."""

    def __call__(
        self,
        only: Sequence[str] = (),
        show: Callable[[str], None] | None = None,
        save: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]: ...


def bench_of(backend: str) -> Bench:
    """The bench of a backend. `ValueError` for one that has none."""
    if backend == "cpu":
        return run_bench
    if backend == "stream":
        return _stream_bench
    if backend == "triton":
        from sparseflow.bench.gpu.run import run_gpu_bench

        return run_gpu_bench
    raise ValueError(f"no bench of a backend {backend!r}; choose from: cpu, stream, triton")


def _stream_bench(
    only: Sequence[str] = (),
    show: Callable[[str], None] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    return run_bench(only or ("stream",), show, save)
