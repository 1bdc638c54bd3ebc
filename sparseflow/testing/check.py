"""check_backend: every rule of the hardware abstraction, tried on small layers."""

from __future__ import annotations

import torch

from sparseflow.hardware.backends import Backend
from sparseflow.hardware.workload import Workload
from sparseflow.testing.bad_input import bad_input
from sparseflow.testing.cases import Broken, cases, workloads
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


def check_backend(backend: Backend) -> None:
    """Raises AssertionError with every rule of `Backend` and `SparseOp` that this backend breaks; prints nothing.

    Runs small layers of every kind on the CPU, and on the GPU where there is one, each in float32, float64 and
    bfloat16, and compares outputs and gradients with `sparseflow_kernels.reference`; ops that are a `FusedOp` are
    held to its rules too. Inputs come in every form that layers give them, with NaN around them in memory. What
    `unsupported` gives a reason for is left out; a backend that supports nothing at all fails. An error that an op
    raises on good input goes through, with a note that names the layer. Takes a few seconds on a CPU. The RNGs are
    left alone.
    """
    broken, ran = dict[str, str](), 0
    for work in workloads():
        reason = backend.unsupported(work)
        if reason is not None:
            if not reason.strip():
                broken.setdefault("unsupported gives its reason in words", str(work))
            continue
        ran += 1
        for rule, detail in _broken_rules(backend, work):
            broken.setdefault(rule, f"{detail} ({_words(work)})")
    if not ran:
        broken["it supports at least one layer on this machine"] = "unsupported refuses every workload"
    lines = "".join(f"\n  {rule}: {detail}" for rule, detail in broken.items())
    count = "1 rule" if len(broken) == 1 else f"{len(broken)} rules"
    assert not broken, f"backend {backend.name!r} breaks {count}:{lines}"


def _broken_rules(backend: Backend, work: Workload) -> Broken:
    # By default a GPU convolves float32 in TF32, whose ten bits are not what the reference is compared to, and adds
    # in whatever order is fastest.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for case in cases(backend, work):
            for check in _CHECKS:
                try:
                    yield from check(case)
                except _ERRORS as error:
                    error.add_note(
                        f"backend {backend.name!r}, {_words(case.work)}, {int(case.mask.sum())} weights kept"
                    )
                    raise


def _words(work: Workload) -> str:
    return f"{work.geometry}, {tuple(work.shape)}, {work.dtype}, {work.device}"
