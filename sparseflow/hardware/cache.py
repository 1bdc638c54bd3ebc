"""Where this machine keeps what was measured on it, and what makes it this machine."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def cache_folder() -> Path | None:
    """`$SPARSEFLOW_CACHE_DIR`, else `$XDG_CACHE_HOME/sparseflow`, else `~/.cache/sparseflow`; None keeps nothing.

    An empty `SPARSEFLOW_CACHE_DIR` asks for that; so does a user without a home. The folder need not exist.
    """
    own = os.environ.get("SPARSEFLOW_CACHE_DIR")
    if own is not None:
        return Path(own) if own else None
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(shared) if shared else Path.home() / ".cache"
    # Path.home where there is no home.
    except RuntimeError:
        return None
    return folder / "sparseflow"


def read_cache(path: Path, form: str) -> dict[str, object]:
    """What `write_cache` wrote there; empty where nothing is, or anything else."""
    try:
        content = json.loads(path.read_text())
    # Neither JSON nor text are ValueErrors; brackets without end are a RecursionError.
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("format") != form:
        return {}
    found = content.get("timings")
    return found if isinstance(found, dict) else {}


def write_cache(path: Path, form: str, timings: Mapping[str, object]) -> None:
    """Replaces the file in one step, or leaves it alone where it cannot be written."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=path.name, dir=path.parent)
        try:
            with open(descriptor, "w") as file:
                json.dump({"format": form, "timings": timings}, file, indent=0)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


@functools.cache
def environment(device: torch.device) -> str:
    """What a timing depends on besides what was timed: chips and versions."""
    parts = [_processor(), f"{os.cpu_count()} cores"]
    if device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    parts.extend(f"{name} {_version(name)}" for name in ("torch", "llvmlite", "triton", "sparseflow"))
    return ", ".join(parts)


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
