"""What sf.stream costs: memory and traffic of a model larger than its limit, and time with the store in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sparseflow.bench import networks
from sparseflow.bench.clock import ratios, take_turns, threads
from sparseflow.bench.figure import Figure
from sparseflow.bench.networks import Case
from sparseflow.bench.step import Step, masked_model
from sparseflow.bench.stream_worker import TIMES, Count
from sparseflow.hardware.plan import sparsify
from sparseflow.hardware.streaming.model import stream
from sparseflow.hardware.streaming.step_traffic import BOUND

# Private memory of the process beyond what its imports take.
_LIMIT = 64 * 2**20
# What a step may take beside what it needs.
_ANYWAY = 200 * 10**6


def streaming() -> list[Figure]:
    """The figures of this file. Private memory is limited by RLIMIT_DATA."""
    if sys.platform != "linux":
        return [Figure("a model larger than its memory", "x", None, True, (), absent="Linux alone counts its memory")]
    counts = {density: count(density) for density in (1.0, 0.1)}
    figures = [figure for density, found in counts.items() for figure in _figures(density, found)]
    dense, sparse = (found.read + found.written for found in counts.values())
    figures.append(Figure("bytes of a step, 90 % sparse / dense", "x", 0.15, False, (sparse / dense,)))
    cases = (networks.lenet(threads=1), networks.mlp_narrow())
    figures += [in_memory(case, density) for case in cases for density in (1.0, 0.1)]
    absent = "the limit is RLIMIT_DATA, which leaves the disk's cache alone: it says nothing about time"
    figures += [
        Figure(f"mapped torch / sf.stream, {what}", "x", limit, True, (), absent=absent)
        for what, limit in (("dense", 1.5), ("90 % sparse", 6.0))
    ]
    return figures


def count(density: float, limit: int = _LIMIT) -> Count:
    """What a training takes whose state is at least four times the limit, in a process of its own."""
    with TemporaryDirectory(dir=Path.cwd()) as folder:
        code = "from sparseflow.bench.stream_worker import main; main()"
        command = [sys.executable, "-c", code, folder, str(density), str(limit)]
        # Else glibc keeps what was freed in pieces that the next layer's tensors do not fit into.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return Count(**json.loads(done.stdout))


def _figures(density: float, found: Count) -> list[Figure]:
    what = "dense" if density == 1 else f"{1 - density:.0%} sparse"
    bytes_each = (found.read + found.written) / found.nnz
    return [
        Figure(f"weights and AdamW's state / limit, trained {what}", "x", TIMES, True, (found.state / found.limit,)),
        Figure(
            f"anonymous memory beyond imports / bound, {what}",
            "x",
            1.0,
            False,
            (found.anonymous / (found.needed + _ANYWAY),),
        ),
        Figure(f"anonymous memory of the whole process, {what}", "MB", None, False, (found.whole / 1e6,)),
        Figure(f"store traffic of a step, {what}", "B/nnz", 1.2 * BOUND, False, (bytes_each,)),
    ]


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
