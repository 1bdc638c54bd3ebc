"""GPUs for the processes of this machine."""

from __future__ import annotations

import torch

from sparseflow.doctor.accelerate_config import Device
from sparseflow.doctor.finding import Finding, ok, warning, wrong


def check_devices(names: list[str], here: int, device: Device = "either") -> Finding:
    """The GPUs seen, by name, beside the processes of this machine and what its config asks for."""
    seen = f"{len(names)} × {names[0]}" if names else "none"
    if device == "cpu":
        return ok("gpus", f"{seen} seen, and the config asks for the CPU")
    if not names and device == "gpu":
        return warning("gpus", f"none seen, and the config asks for {here} on each node: fine on a login node alone")
    if names and here > len(names):
        return wrong("gpus", f"expected one for each of {here} processes, seen {seen}; start {len(names)} a node")
    if not names:
        return ok("gpus", "none seen: the processes train on the CPU and speak through gloo")
    unused = f"; {len(names) - here} of them unused" if here < len(names) else ""
    return ok("gpus", f"{seen}{unused}")


def seen_gpus() -> list[str]:
    """The names of the GPUs that this process sees."""
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
