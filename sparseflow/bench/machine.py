"""The machine that figures were taken on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def describe_machine() -> dict[str, Any]:
    """Processor, caches, versions and threads, as plain data; what this system does not tell is left empty."""
    return {
        "processor": platform.machine(),
        "model": _model(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "caches": _caches(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def load_average() -> float | None:
    """Processes that ran or waited in the last minute, on average; None where the system does not count them."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _model() -> str:
    if not _CPUINFO.exists():
        return platform.processor()
    facts = dict(_fact(line) for line in _CPUINFO.read_text().split("\n\n")[0].splitlines())
    # Under a hypervisor the name can be a number; family and model still tell the generation.
    name = facts.get("model name", platform.processor())
    numbers = [f"{key} {facts[key]}" for key in ("cpu family", "model", "stepping") if key in facts]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def _fact(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()


def _caches() -> dict[str, str]:
    found: dict[str, str] = {}
    for folder in sorted(_CACHES.glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        found[f"L{level} {kind.lower()}"] = size
    return found
