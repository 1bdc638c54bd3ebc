"""Whole steps against the sparse layers of others, at each sparsity of the speed table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from sparseflow.bench import networks
from sparseflow.bench.clock import faster, ratios, take_turns, threads
from sparseflow.bench.figure import Figure
from sparseflow.bench.networks import Case
from sparseflow.bench.peers import MISSING, csr_step, disagreement, sparseprop_installed, sparseprop_steps
from sparseflow.bench.step import Step, fault, sparse_step
from sparseflow.bench.versus_dense import SPARSITIES

# Floor and aim.
_SPARSEPROP = (2.5, 4.0)
_CSR = (3.5, 5.0)


def peers(backend: str) -> list[Figure]:
    """Both MLPs and both convolutions; torch.sparse has no convolution."""
    figures: list[Figure] = []
    if not sparseprop_installed():
        figures.append(Figure("SparseProp / ours", "x", _SPARSEPROP[0], True, (), aim=_SPARSEPROP[1], absent=MISSING))
    for case in (networks.mlp_narrow(), networks.mlp_wide(), networks.conv(64, 32), networks.conv(256, 8)):
        figures += against_peers(case, backend, SPARSITIES)
    return figures


def against_peers(case: Case, backend: str, sparsities: Sequence[int]) -> list[Figure]:
    """Times of a peer's step over ours, for every peer that has the layers and is installed."""
    figures = []
    with threads(case.threads):
        for sparsity in sparsities:
            density = 1 - sparsity / 100
            others = _others(case, density)
            name = f"{case.name}, {sparsity} % sparse"
            figures += _figures(name, case, density, sparse_step(case, density, backend), others)
    return figures


def _others(case: Case, density: float) -> dict[str, dict[str, Step]]:
    others = {"SparseProp": sparseprop_steps(case, density)} if sparseprop_installed() else {}
    if case.x.dim() == 2:
        others["torch CSR"] = {"csr": csr_step(case, density)}
    return others


def _figures(
    name: str, case: Case, density: float, ours: Step, others: Mapping[str, Mapping[str, Step]]
) -> list[Figure]:
    check = fault(ours)
    faults = {peer: _faults(sides, case, density) for peer, sides in others.items()}
    # A peer with several modes is held to its better one.
    modes = {peer: _modes(sides, faults[peer], case.threads) for peer, sides in others.items()}
    timed = {mode: step for sides in modes.values() for mode, step in sides.items()}
    seconds = take_turns({**timed, "ours": ours}) if check == "ok" else {}
    figures = []
    for peer, sides in modes.items():
        limit, aim = _SPARSEPROP if peer == "SparseProp" else _CSR
        title = f"{name}: {peer} / ours"
        if check != "ok":
            figures.append(Figure(title, "x", limit, True, (), check, aim))
        elif not sides:
            wrong = f"{peer} is wrong here: {'; '.join(faults[peer].values())}"
            figures.append(Figure(title, "x", limit, True, (), aim=aim, absent=wrong))
        else:
            better = faster({mode: seconds[mode] for mode in sides})
            used = {mode: seconds[mode] for mode in (*sides, "ours")}
            speedup = ratios(seconds[better], seconds["ours"])
            figures.append(Figure(title, "x", limit, True, speedup, aim=aim, seconds=used))
    return figures


def _faults(sides: Mapping[str, Step], case: Case, density: float) -> dict[str, str]:
    checks = {side: disagreement(step, case, density) for side, step in sides.items()}
    return {side: check for side, check in checks.items() if check != "ok"}


def _modes(sides: Mapping[str, Step], faults: Mapping[str, str], count: int) -> dict[str, Callable[[], None]]:
    right: dict[str, Callable[[], None]] = {side: step for side, step in sides.items() if side not in faults}
    if count == 1:
        return right
    # SparseProp waits for all threads after each row, which can take a hundred times longer on a busy machine.
    return {**right, **{f"{side} on 1 thread": partial(_on_one_thread, step) for side, step in right.items()}}


def _on_one_thread(step: Callable[[], None]) -> None:
    with threads(1):
        step()
