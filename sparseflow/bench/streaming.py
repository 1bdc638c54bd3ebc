"""What sf.stream costs: a model larger than its memory, beside plain torch, and steps with the store in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sparseflow.bench import networks
from sparseflow.bench.clock import ratios, take_turns, threads
from sparseflow.bench.figure import Figure
from sparseflow.bench.memory_cgroup import memory_cgroup
from sparseflow.bench.networks import Case
from sparseflow.bench.step import Step, masked_model
from sparseflow.bench.stream_worker import TIMES, Count, Job, Side
from sparseflow.hardware.plan import sparsify
from sparseflow.hardware.streaming.model import stream
from sparseflow.hardware.streaming.step_traffic import BOUND

# Memory of the process beyond what its imports take.
_LIMIT = 64 * 2**20
# What a step may take beside what it needs.
_ANYWAY = 200 * 10**6
# Processes that take turns, and steps of each.
_ROUNDS, _STEPS = 3, 3
_MAPPED: tuple[Side, float] = ("mapped", 1.0)
# Dense and 90 % sparse: how many times faster than plain torch.
_FASTER = {1.0: 1.5, 0.1: 6.0}


def streaming() -> list[Figure]:
    """The figures of this file."""
    if sys.platform != "linux":
        return [Figure("a model larger than its memory", "x", None, True, (), absent="Linux alone counts its memory")]
    figures = larger_than_memory(batch=64) + larger_than_memory(batch=16)
    cases = (networks.lenet(threads=1), networks.mlp_narrow())
    return figures + [in_memory(case, density) for case in cases for density in (1.0, 0.1)]


def larger_than_memory(batch: int, rounds: int = _ROUNDS, steps: int = _STEPS, limit: int = _LIMIT) -> list[Figure]:
    """A model on sf.stream, dense and sparse, and dense in plain torch whose files are mapped, in turn."""
    sides: list[tuple[Side, float]] = [*(("stream", density) for density in _FASTER), _MAPPED]
    found: dict[tuple[Side, float], list[Count]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, density in sides:
            found[side, density].append(count(side, density, batch, steps, limit))
    mapped = found[_MAPPED]
    figures = [figure for density in _FASTER for figure in _figures(density, batch, found["stream", density][0])]
    dense, sparse = (one.read + one.written for one in (found["stream", density][0] for density in _FASTER))
    figures.append(
        Figure(f"b{batch}: store's bytes of a step, 90 % sparse / dense", "x", 0.15, False, (sparse / dense,))
    )
    figures += _moved("mapped torch, dense", batch, mapped[0])
    return figures + [_faster(density, batch, mapped, found["stream", density]) for density in _FASTER]


def count(side: Side, density: float, batch: int = 64, steps: int = 2, limit: int = _LIMIT) -> Count:
    """What a training takes whose state is at least four times the limit, in a process of its own."""
    with TemporaryDirectory(dir=Path.cwd()) as folder, memory_cgroup(limit) as cgroup:
        job = Job(side, folder, density, limit, "" if cgroup is None else str(cgroup), batch, steps)
        code = "from sparseflow.bench.stream_worker import main; main()"
        command = [sys.executable, "-c", code, json.dumps(asdict(job))]
        # Else glibc keeps what was freed in pieces that the next layer's tensors do not fit into.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return Count(**{**json.loads(done.stdout), "under": "RLIMIT_DATA" if cgroup is None else "a memory cgroup"})


def _figures(density: float, batch: int, found: Count) -> list[Figure]:
    what = f"b{batch}, {_words(density)}"
    times = (found.state / found.limit,)
    bound = (found.anonymous / (found.needed + _ANYWAY),)
    bytes_each = (found.read + found.written) / found.nnz
    return [
        Figure(f"{what}: weights and AdamW's state / limit ({found.under}), trained", "x", TIMES, True, times),
        Figure(f"{what}: anonymous memory beyond imports / bound", "x", 1.0, False, bound),
        Figure(f"{what}: store traffic of a step", "B/nnz", 1.2 * BOUND, False, (bytes_each,)),
        *_moved(f"sf.stream, {_words(density)}", batch, found),
    ]


def _moved(what: str, batch: int, found: Count) -> list[Figure]:
    sizes = {
        "peak anonymous memory of the process": found.whole,
        "bytes read by the process a step": found.from_disk,
        "bytes written by the process a step": found.to_disk,
    }
    return [Figure(f"b{batch}, {what}: {name}", "MB", None, False, (size / 1e6,)) for name, size in sizes.items()]


def _faster(density: float, batch: int, mapped: list[Count], ours: list[Count]) -> Figure:
    name = f"b{batch}: dense step of mapped torch / of sf.stream, {_words(density)} ({ours[0].under})"
    sides = {
        side: tuple(s for one in counts for s in one.seconds) for side, counts in (("torch", mapped), ("ours", ours))
    }
    if ours[0].under == "RLIMIT_DATA":
        absent = "RLIMIT_DATA leaves the disk's cache alone, so that it says nothing about time"
        return Figure(name, "x", _FASTER[density], True, (), absent=absent)
    return Figure(name, "x", _FASTER[density], True, ratios(sides["torch"], sides["ours"]), seconds=sides)


def _words(density: float) -> str:
    return "dense" if density == 1 else f"{1 - density:.0%} sparse"


def in_memory(case: Case, density: float) -> Figure:
    """A step with the store in memory over one on `dense`, both with torch's AdamW on one tensor at a time."""
    name = f"{case.name}, {density:.0%} kept: step with the store in memory / dense"
    with threads(case.threads):
        plain, masks = masked_model(case, density)
        dense = Step(sparsify(plain, masks, backend="dense"), case.x, case.target)
        dense.optimizer = torch.optim.AdamW(dense.parameters, lr=1e-6, foreach=False)
        body, _ = masked_model(case, density)
        kept = masks if density < 1 else None
        streamed, optimizer = stream(body, torch.optim.AdamW(body.parameters(), lr=1e-6), None, kept)
        ours = Step(streamed, case.x, case.target)
        ours.optimizer = optimizer
        sides = take_turns({"ours": ours, "dense": dense})
    return Figure(name, "x", 1.3, False, ratios(sides["ours"], sides["dense"]), seconds=sides)
