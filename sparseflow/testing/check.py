"""check_backend: every rule of the hardware abstraction, tried on small layers."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sparseflow.hardware.backends import Backend
from sparseflow.hardware.workload import Workload
from sparseflow.testing.bad_input import bad_input
from sparseflow.testing.cases import Broken, Case, cases, workloads
from sparseflow.testing.fused import fused
from sparseflow.testing.products import empty_batch, products, repeated, two_forwards, untouched
from sparseflow.testing.structure import cost, layout, moving, packing, structure

_CHECKS = (
    cost,
    layout,
    structure,
    packing,
    moving,
    products,
    two_forwards,
    repeated,
    untouched,
    empty_batch,
    fused,
    # At the end: a kernel that trusts what it gets may crash here.
    bad_input,
)

# What ops raise on good input: a note tells on which.
_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def check_backend(backend: Backend, every: int = 1, first: int = 0) -> None:
    """Raises AssertionError with every rule of `Backend` and `SparseOp` that this backend breaks; prints nothing.

    Runs small layers of every kind on the CPU, and on the GPU where there is one, each in float32, float64 and
    bfloat16, and compares outputs and gradients with `sparseflow_kernels.reference`; ops that are a `FusedOp` are
    held to its rules too. Inputs come in every form that layers give them, with NaN around them in memory. What
    `unsupported` gives a reason for is left out; a backend that supports nothing at all fails. An error that an op
    raises on good input goes through, with a note that names the layer. Takes a few seconds on a CPU; where it would
    take too long, as on an emulator, it tries one in `every` cases (a layer, a dtype and a mask), from the `first` on.
    The RNGs are left alone.
    """
    if not 0 <= first < every:
        raise ValueError(f"expected first from 0 to every - 1, got every={every} and first={first}")
    broken, ran = dict[str, str](), False
    for number, case in enumerate(_supported(backend, broken)):
        ran = True
        if number % every == first:
            for rule, detail in _broken_rules(case):
                broken.setdefault(rule, f"{detail} ({_words(case.work)})")
    if not ran:
        broken["it supports at least one layer on this machine"] = "unsupported refuses every workload"
    lines = "".join(f"\n  {rule}: {detail}" for rule, detail in broken.items())
    count = "1 rule" if len(broken) == 1 else f"{len(broken)} rules"
    assert not broken, f"backend {backend.name!r} breaks {count}:{lines}"


def _supported(backend: Backend, broken: dict[str, str]) -> Iterator[Case]:
    """Every case that the backend has no reason to refuse; adds to `broken` where its reason is none."""
    for work in workloads():
        reason = backend.unsupported(work)
        if reason is None:
            yield from cases(backend, work)
        elif not reason.strip():
            broken.setdefault("unsupported gives its reason in words", str(work))


def _broken_rules(case: Case) -> Broken:
    # By default a GPU convolves float32 in TF32, whose ten bits are not what the reference is compared to, and adds
    # in whatever order is fastest.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for check in _CHECKS:
            try:
                yield from check(case)
            except _ERRORS as error:
                kept = f"{int(case.mask.sum())} weights kept"
                error.add_note(f"backend {case.backend.name!r}, {_words(case.work)}, {kept}")
                raise


def _words(work: Workload) -> str:
    return f"{work.geometry}, {tuple(work.shape)}, {work.dtype}, {work.device}"
