"""Backends, found by name: our own are files in this folder, others come by entry point.

    [project.entry-points."sparseflow.backends"]
    mychip = "my_package.backend:MyBackend"

An entry point names a class or function without arguments that returns a `Backend`, or a ready instance.
"""

from __future__ import annotations

import difflib
import functools
from importlib import import_module
from importlib.metadata import entry_points

import torch

from sparseflow.hardware.backends.base import Backend, Cost, SparseOp
from sparseflow.hardware.workload import Workload

__all__ = ["Backend", "Cost", "SparseOp", "available", "get", "readiness"]

GROUP = "sparseflow.backends"

_OURS = {
    "cpu": "sparseflow.hardware.backends.cpu:Cpu",
    "dense": "sparseflow.hardware.backends.dense:Dense",
    "dense-compact": "sparseflow.hardware.backends.dense:DenseCompact",
    "stream": "sparseflow.hardware.backends.stream:Stream",
    "triton": "sparseflow.hardware.backends.triton:Triton",
}


def available() -> list[str]:
    """Names of all backends installed here, ours and those of other packages, sorted."""
    return sorted({*_OURS, *(point.name for point in entry_points(group=GROUP))})


@functools.cache
def get(name: str) -> Backend:
    """The backend of that name. `ValueError` with the choices where there is none; built once a process."""
    if name in _OURS:
        module, _, attribute = _OURS[name].partition(":")
        found = getattr(import_module(module), attribute)
    else:
        points = {point.name: point for point in entry_points(group=GROUP)}
        if name not in points:
            near = difflib.get_close_matches(name, available(), n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"no backend {name!r}{hint}; available: {', '.join(available())}")
        found = points[name].load()
    ready = isinstance(found, Backend) and not isinstance(found, type)
    backend = found() if callable(found) and not ready else found
    if not isinstance(backend, Backend):
        raise TypeError(f"backend {name!r} is a {type(backend).__name__}, which lacks members of Backend")
    if backend.name != name:
        raise ValueError(f"backend {name!r} calls itself {backend.name!r}; its entry point must have that name")
    return backend


def readiness() -> dict[str, str | None]:
    """For each backend: None where it runs a plain linear layer on this machine, on its CPU or GPU; else why not."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    works = [Workload((512, 512), rows=128, density=0.1, device=torch.device(device)) for device in devices]
    reasons = {name: [get(name).unsupported(work) for work in works] for name in available()}
    # Where both refuse, a GPU's reason tells more.
    return {name: None if None in some else some[-1] for name, some in reasons.items()}
