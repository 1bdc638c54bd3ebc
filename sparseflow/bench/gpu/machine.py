"""Chip, driver and versions that figures of a GPU were taken with."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from sparseflow.bench.machine import describe_machine

_QUERY = ("driver_version", "clocks.max.sm", "power.limit")


def interpreted() -> bool:
    """Whether Triton's own interpreter runs the kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def require_gpu() -> torch.device:
    """The device to measure on; under TRITON_INTERPRET=1 the CPU. `ValueError` where there is neither."""
    if interpreted():
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    raise ValueError(
        "the bench of 'triton' needs an NVIDIA or AMD GPU and a torch built for it; "
        f"torch {torch.__version__} sees none here. To check the kernels without one: TRITON_INTERPRET=1"
    )


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """The machine as `describe_machine` tells it, and the GPU: chip, L2 and memory in bytes, driver, versions."""
    found = {**describe_machine(), "triton": _version("triton"), "cuda": torch.version.cuda, "hip": torch.version.hip}
    if device.type != "cuda":
        return {**found, "gpu": None}
    chip = torch.cuda.get_device_properties(device)
    return {
        **found,
        "gpu": chip.name,
        "capability": list(torch.cuda.get_device_capability(device)),
        "multiprocessors": chip.multi_processor_count,
        "l2": chip.L2_cache_size,
        "memory": chip.total_memory,
        **_driver(device),
    }


def machine_text(machine: dict[str, Any]) -> str:
    """One line about it."""
    versions = [f"{name} {machine[name]}" for name in ("torch", "triton", "cuda", "hip", "python") if machine[name]]
    if machine["gpu"] is None:
        return "; ".join(["no GPU: results are checked in Triton's interpreter, nothing is timed", *versions])
    facts = [machine["gpu"], f"{machine['multiprocessors']} multiprocessors", f"L2 {machine['l2'] / 2**20:.0f} MiB"]
    return "; ".join([*facts, *(f"{name} {machine[name]}" for name in _QUERY if name in machine), *versions])


def _driver(device: torch.device) -> dict[str, str]:
    # torch does not tell the driver's version.
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader", f"--id={device.index or 0}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(_QUERY, values)) if done.returncode == 0 else {}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
