"""Which backend runs each layer, and why: candidates are timed as they would run, chains of layers included."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from sparseflow.hardware import backends
from sparseflow.hardware.backends import Backend, Cost
from sparseflow.hardware.backends.base import EmulatedBackend, Explains, FusedOp
from sparseflow.hardware.choice import Candidate, Row, duration
from sparseflow.hardware.flow import Flow
from sparseflow.hardware.measure import measure
from sparseflow.hardware.timings import Timings
from sparseflow.hardware.workload import Workload

# A chain that breaks has its layers chosen again without it, which may break another.
_PASSES = 3

Works = Mapping[str, Workload]
Flows = Mapping[str, Flow]
# Weight → whether its output is feature-major.
_Chains = dict[str, bool]


@dataclass(frozen=True, eq=False)
class _Choice:
    """What the timing of one workload came to."""

    work: Workload
    candidates: tuple[Candidate, ...]
    # Names of the backends that can run it, the fastest first.
    order: tuple[str, ...]
    costs: Mapping[str, Cost]
    earlier: bool


def route(works: Works, flows: Flows, timings: Timings, crossovers: bool = True) -> tuple[Row, ...]:
    """A row for each weight with the backend that is fastest here, chains of layers taken into account.

    A layer's output is feature-major where all layers that take it were given the same fusing backend. Layers of one
    workload share a timing. Crossovers cost the timing of two candidates at another density.
    """
    choose = functools.cache(lambda work: _choose(work, timings))
    fusing = _Fusing()
    seen = chains = _chainable(works, flows)
    choices = {name: choose(work) for name, work in _in_chains(works, flows, chains).items()}
    for _ in range(_PASSES - 1):
        fused = fusing.of(*_chosen(choices))
        # What has been broken stays so, or two layers might change places for ever.
        before, chains = chains, _unbroken(chains, flows, fused)
        if chains == before:
            break
        choices = {name: choose(work) for name, work in _in_chains(works, flows, chains).items()}
    fused = fusing.of(*_chosen(choices))
    # Layers that have come together after all need no copies between them.
    chains = _unbroken(seen, flows, fused)
    crossing = functools.cache(lambda choice: _crossover(choice, timings) if crossovers else (None, ""))
    rows = []
    for name, choice in choices.items():
        density, words = crossing(choice)
        work = _in_chain(name, works[name], flows, chains)
        row = _row(name, work, choice.order[0], _reason(choice) + words, flows[name], fused[name])
        rows.append(replace(row, candidates=choice.candidates, crossover=density))
    return tuple(rows)


def route_to(backend: str, works: Works, flows: Flows) -> tuple[Row, ...]:
    """A row for each weight with the backend that the caller names; nothing is timed."""
    chains = _chainable(works, flows)
    # Where nobody has looked at the model there is nothing to fuse.
    looked = any(flow != Flow() for flow in flows.values())
    chained = {name: _in_chain(name, work, flows, chains) for name, work in works.items()}
    fused = _Fusing().of(dict.fromkeys(works, backend), chained) if looked else dict.fromkeys(works)
    chains = _unbroken(chains, flows, fused)
    return tuple(
        _row(name, _in_chain(name, work, flows, chains), backend, "named by the caller", flows[name], fused[name])
        for name, work in works.items()
    )


class _Fusing:
    """Knows which backends' ops are FusedOps, by packing one weight."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[int, ...]], bool] = {}

    def of(self, chosen: Mapping[str, str], works: Works) -> dict[str, str | None]:
        """Weight → its backend where that fuses, else None."""
        return {name: backend if self._fuses(backend, works[name]) else None for name, backend in chosen.items()}

    def _fuses(self, name: str, work: Workload) -> bool:
        backend = backends.get(name)
        if backend.unsupported(work) is not None:
            return False
        key = backend.layout(work), work.shape
        if key not in self._known:
            mask = torch.zeros(work.shape, dtype=torch.bool, device=work.device)
            mask.view(-1)[0] = True
            self._known[key] = isinstance(backend.pack(mask, key[0]), FusedOp)
        return self._known[key]


def _chainable(works: Works, flows: Flows) -> _Chains:
    # Convolutions take images apart in blocks of their own, which batch-contiguous strides do not help; and between
    # most of them stand norms, which give back the standard layout anyway.
    return {name: bool(flow.feeds) and works[name].geometry.kind == "linear" for name, flow in flows.items()}


def _in_chains(works: Works, flows: Flows, chains: _Chains) -> dict[str, Workload]:
    return {
        name: replace(
            _in_chain(name, work, flows, chains),
            # Layers of one shape and about one density share a timing.
            density=float(f"{work.density:.1e}"),
            relu=bool(flows[name].relus),
        )
        for name, work in works.items()
    }


def _in_chain(name: str, work: Workload, flows: Flows, chains: _Chains) -> Workload:
    sources = flows[name].sources
    return replace(
        work, chained_in=bool(sources) and all(chains[source] for source in sources), chained_out=chains[name]
    )


def _chosen(choices: Mapping[str, _Choice]) -> tuple[dict[str, str], Works]:
    """The backend of each weight, and the work that it was chosen for."""
    return {name: one.order[0] for name, one in choices.items()}, {name: one.work for name, one in choices.items()}


def _unbroken(chains: _Chains, flows: Flows, fused: Mapping[str, str | None]) -> _Chains:
    kept = {
        name: chains[name] and fused[name] is not None and all(fused[fed] == fused[name] for fed in flow.feeds)
        for name, flow in flows.items()
    }
    # Outputs that are added to each other are feature-major together, or not.
    while alone := [name for name, flow in flows.items() if kept[name] and not all(kept[mate] for mate in flow.mates)]:
        kept.update(dict.fromkeys(alone, False))
    return kept


def _choose(work: Workload, timings: Timings) -> _Choice:
    names = backends.available()
    reasons = {name: backends.get(name).unsupported(work) for name in names}
    able = {name: backends.get(name) for name in names if reasons[name] is None}
    emulated = {name: backend for name, backend in able.items() if isinstance(backend, EmulatedBackend)}
    here = {name: backend for name, backend in able.items() if name not in emulated}
    if not here:
        said = "; ".join(f"{n}: {r or 'only emulates another machine; name it to use it'}" for n, r in reasons.items())
        raise ValueError(f"no backend can run this layer: {said}")
    costs, earlier = _costs(here, work, timings)
    shown = {**costs, **{name: backend.cost(work) for name, backend in emulated.items()}}
    candidates = tuple(Candidate(name, shown.get(name), reasons[name]) for name in names)
    return _Choice(work, candidates, tuple(sorted(costs, key=lambda name: costs[name].seconds)), costs, earlier)


def _costs(able: Mapping[str, Backend], work: Workload, timings: Timings) -> tuple[Mapping[str, Cost], bool]:
    """Costs of the backends, and whether they were measured at another time."""
    if not work.rows:
        return {name: backend.cost(work) for name, backend in able.items()}, False
    layouts = {name: backend.layout(work) for name, backend in able.items()}
    found = {name: timings.get(layout, work) for name, layout in layouts.items()}
    known = {name: cost for name, cost in found.items() if cost is not None}
    # All or none: only what was timed in turns can be compared.
    if len(known) == len(able):
        return known, True
    costs = measure(dict(able), work)
    for name, cost in costs.items():
        timings.put(layouts[name], work, cost)
    return costs, False


def _reason(choice: _Choice) -> str:
    best = choice.costs[choice.order[0]]
    how = "modelled" if not best.measured else "measured earlier" if choice.earlier else "measured now"
    reason = f"{how} {duration(best.seconds)} a step"
    if len(choice.order) > 1:
        second = choice.order[1]
        reason += f", {choice.costs[second].seconds / best.seconds:.2f}x faster than {second}"
    if not choice.work.rows:
        reason += "; the sample does not reach it"
    return reason


def _crossover(choice: _Choice, timings: Timings) -> tuple[float | None, str]:
    """The density at which the runner-up would win, on straight lines through two measured densities; and words."""
    work = choice.work
    if len(choice.order) < 2 or not work.rows:
        return None, ""
    pair = {name: backends.get(name) for name in choice.order[:2]}
    best, second = pair
    sparser = replace(work, density=work.density / 4)
    # Not too near: the line between the two measurements goes on to a crossing that may be far away.
    denser = replace(work, density=min(1.0, max(4 * work.density, 0.25)))
    # The one whose cost depends more on density loses as density grows.
    upward = _growth(pair[best], sparser, work) > _growth(pair[second], sparser, work)
    other = denser if upward else sparser
    where = "above" if upward else "below"
    if other.density == work.density or any(backend.unsupported(other) is not None for backend in pair.values()):
        return None, ""
    costs, _ = _costs(pair, other, timings)
    here = choice.costs[second].seconds - choice.costs[best].seconds
    there = costs[second].seconds - costs[best].seconds
    crossing = work.density + here * (other.density - work.density) / (here - there) if here != there else -1.0
    if work.density < crossing <= 1 if upward else 0 < crossing < work.density:
        return crossing, f"; {second} would win {where} about {100 * crossing:.2g} % density"
    return None, f"; {second} would win at no {'higher' if upward else 'lower'} density"


def _growth(backend: Backend, sparser: Workload, denser: Workload) -> float:
    return backend.cost(denser).seconds - backend.cost(sparser).seconds


def _row(name: str, work: Workload, backend: str, reason: str, flow: Flow, fused: str | None) -> Row:
    found = backends.get(backend)
    if isinstance(found, Explains):
        reason = f"{reason}; {found.explain(work)}"
    relus = flow.relus if fused else ()
    major = work.chained_out
    return Row(name, work.shape, work.density, backend, found.layout(work), reason, relus=relus, feature_major=major)
