"""Whole steps against the better of the dense layouts, and the sparsity from which ours wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparseflow.bench import networks
from sparseflow.bench.clock import faster, ratios, take_turns, threads
from sparseflow.bench.figure import Figure
from sparseflow.bench.networks import Case
from sparseflow.bench.step import dense_steps, fault, sparse_step

# In per cent of the weights.
SPARSITIES = (80, 90, 95, 99)
_LOW = (40, 50, 55, 60, 70)
_BREAK_EVEN = 55.0


@dataclass(frozen=True)
class Promise:
    """How many times faster than dense, by sparsity: the least that we promise, and the aim."""

    floors: Mapping[int, float] = field(default_factory=dict)
    aims: Mapping[int, float] = field(default_factory=dict)


_MLP = Promise({80: 2.0, 90: 3.5, 95: 5.0, 99: 8.0}, {80: 3.0, 90: 6.0, 95: 10.0, 99: 25.0})
_CONV_AIMS = {80: 3.0, 90: 5.0, 95: 8.0, 99: 12.0}
_CONV_64 = Promise({80: 1.7, 90: 2.6, 95: 3.4, 99: 5.0}, _CONV_AIMS)
_CONV_256 = Promise({80: 2.5, 90: 4.0, 95: 6.0, 99: 8.0}, _CONV_AIMS)
_LENET = Promise({95: 1.4}, {95: 2.2})
_WHOLE_MODELS = Promise({90: 1.0})


def mlps(backend: str) -> list[Figure]:
    """Both MLPs, 2 threads, and where they break even."""
    cases = (networks.mlp_narrow(), networks.mlp_wide())
    return [figure for case in cases for figure in with_break_even(case, _MLP, backend)]


def convs(backend: str) -> list[Figure]:
    """Both convolutions: 1 thread with break-even, and 2 threads without a promise beside them."""
    figures = []
    for channels, size, promise in ((64, 32, _CONV_64), (256, 8, _CONV_256)):
        figures += with_break_even(networks.conv(channels, size), promise, backend)
        figures += speedups(networks.conv(channels, size, threads=2), Promise(), backend, SPARSITIES)
    return figures


def lenet(backend: str) -> list[Figure]:
    """LeNet-300-100 at 95 %: the promise is for 1 thread on both sides, 2 threads are beside it."""
    return [
        *speedups(networks.lenet(threads=1), _LENET, backend, (95,)),
        *speedups(networks.lenet(threads=2), Promise(), backend, (95,)),
    ]


def whole_models() -> list[Figure]:
    """ResNet-20 and GPT at 90 %, each layer on what the plan chooses for it."""
    cases = (networks.resnet(), networks.language())
    return [figure for case in cases for figure in speedups(case, _WHOLE_MODELS, "auto", (90,))]


def with_break_even(
    case: Case, promise: Promise, backend: str, low: Sequence[int] = _LOW, high: Sequence[int] = SPARSITIES
) -> list[Figure]:
    """`speedups` at the high sparsities, and the sparsity at which ours equals dense, for which low ones are tried."""
    measured = speedups(case, promise, backend, (*low, *high))
    name = f"{_label(case)}: break-even with dense"
    wrong = next((figure.check for figure in measured if figure.check != "ok"), "ok")
    samples: tuple[float, ...] = ()
    if wrong == "ok":
        repeats = zip(*(figure.samples for figure in measured), strict=True)
        samples = tuple(break_even(dict(zip((*low, *high), repeat))) for repeat in repeats)
    return [*measured, Figure(name, "% sparse", _BREAK_EVEN, False, samples, wrong)]


def speedups(case: Case, promise: Promise, backend: str, sparsities: Sequence[int]) -> list[Figure]:
    """Time of a step of the better dense layout over ours, at each sparsity in per cent."""
    with threads(case.threads):
        return [_speedup(case, promise, backend, sparsity) for sparsity in sparsities]


def break_even(speedup: Mapping[int, float]) -> float:
    """The sparsity in per cent at which ours equals dense, from speed-ups by sparsity.

    Interpolates ours over dense, linearly in density, above the highest sparsity that still loses. Where all win it
    is the lowest one tried, an upper bound; where the highest one loses it is 100.
    """
    order = sorted(speedup)
    losing = [sparsity for sparsity in order if speedup[sparsity] < 1]
    if not losing:
        return float(order[0])
    if losing[-1] == order[-1]:
        return 100.0
    below, above = losing[-1], order[order.index(losing[-1]) + 1]
    slow, fast = 1 / speedup[below], 1 / speedup[above]
    return below + (above - below) * (slow - 1) / (slow - fast)


def _speedup(case: Case, promise: Promise, backend: str, sparsity: int) -> Figure:
    name = f"{_label(case)}, {sparsity} % sparse: dense / ours"
    limit, aim = promise.floors.get(sparsity), promise.aims.get(sparsity)
    ours = sparse_step(case, 1 - sparsity / 100, backend)
    check = fault(ours)
    if check != "ok":
        return Figure(name, "x", limit, True, (), check, aim)
    dense = dense_steps(case)
    seconds = take_turns({**dense, "ours": ours})
    better = faster({side: seconds[side] for side in dense})
    return Figure(name, "x", limit, True, ratios(seconds[better], seconds["ours"]), aim=aim, seconds=seconds)


def _label(case: Case) -> str:
    return f"{case.name}, {case.threads} thread{'s' if case.threads > 1 else ''}"
