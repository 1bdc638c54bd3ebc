"""accelerate's config file beside the recipe: does it start what the worker then trains with?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

from sparseflow.doctor.finding import Finding, ok, warning, wrong

Device = Literal["gpu", "cpu", "either"]

_NAME = "config"
# Types by which accelerate starts processes and nothing else.
_STARTS = {DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU}
_ELSEWHERE = {
    DistributedType.FSDP: "sparseflow shards by itself: distributed_type: MULTI_GPU, and --engine fsdp2 for the worker",
    DistributedType.DEEPSPEED: "sparse rounds run under DDP or FSDP2; dense ones under DeepSpeed are "
    "`torchrun … -m sparseflow_launchers.dense RECIPE --deepspeed ds.json`",
}


@dataclass(frozen=True)
class Asked:
    """What a config starts."""

    processes: int
    machines: int
    device: Device

    @property
    def here(self) -> int:
        """Processes on each machine."""
        return self.processes // self.machines


def read_accelerate(path: Path) -> ClusterConfig:
    """The config in a YAML or JSON file, as accelerate itself reads it. `ValueError` where it would not."""
    try:
        found = load_config_from_file(str(path))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: accelerate cannot read it: {error}; launchers/configs has ones to copy") from None
    if not isinstance(found, ClusterConfig):
        raise ValueError(f"{path}: expected compute_environment: LOCAL_MACHINE, got {found.compute_environment.value}")
    return found


def what_starts(config: ClusterConfig) -> Asked:
    """Processes and machines of a config; one process where it does not say."""
    cpu = bool(config.use_cpu) or config.distributed_type is DistributedType.MULTI_CPU
    multi = config.distributed_type is DistributedType.MULTI_GPU
    return Asked(
        max(1, config.num_processes), max(1, config.num_machines), "cpu" if cpu else "gpu" if multi else "either"
    )


def check_accelerate(config: ClusterConfig, engine: str, processes: int | None) -> list[Finding]:
    """What does not fit: type, number of processes, engine, precision. One ok where everything does."""
    checks = (_type(config), _processes(config, processes), _machines(config), *_training(config, engine))
    found = [finding for finding in checks if finding is not None]
    asked = what_starts(config)
    machines = "1 machine" if asked.machines == 1 else f"{asked.machines} machines"
    fine = f"{asked.processes} processes on {machines}, mixed_precision: {_precision(config)}"
    return found or [ok(_NAME, fine)]


def _type(config: ClusterConfig) -> Finding | None:
    kind = DistributedType(config.distributed_type)
    if kind in _STARTS:
        return None
    if kind in _ELSEWHERE:
        return wrong(_NAME, f"distributed_type: {kind.value}: {_ELSEWHERE[kind]}")
    return warning(_NAME, f"distributed_type: {kind.value}: sparseflow is tested with NO and MULTI_GPU alone")


def _processes(config: ClusterConfig, processes: int | None) -> Finding | None:
    kind, number = DistributedType(config.distributed_type), config.num_processes
    if number < 1:
        return wrong(_NAME, "num_processes: expected how many processes all machines start together, got none")
    if processes is not None and processes != number:
        return wrong(_NAME, f"num_processes: expected {processes}, as --processes or this launch says, got {number}")
    if number > 1 and (config.use_cpu or kind in (DistributedType.NO, DistributedType.MULTI_CPU)):
        return wrong(
            _NAME,
            f"num_processes: {number} with distributed_type: {kind.value}, use_cpu: {str(config.use_cpu).lower()}: "
            f"accelerate would start one process; on CPUs: torchrun --nproc_per_node {number}, on GPUs: MULTI_GPU",
        )
    return None


def _machines(config: ClusterConfig) -> Finding | None:
    number, machines = config.num_processes, config.num_machines
    if machines < 1 or number % machines:
        return wrong(_NAME, f"num_processes: expected a multiple of num_machines: {machines}, got {number}")
    if machines > 1 and config.main_process_ip is None:
        return wrong(_NAME, "main_process_ip: expected the address of the first of several machines, got none")
    return None


def _training(config: ClusterConfig, engine: str) -> list[Finding | None]:
    precision, found = _precision(config), []
    if precision not in ("no", "bf16", "fp16"):
        found.append(wrong(_NAME, f"mixed_precision: expected no, bf16 or fp16, got {precision}"))
    if precision == "fp16" and engine == "fsdp2":
        found.append(wrong(_NAME, "mixed_precision: fp16 with fsdp2, where each rank scales its own loss; use bf16"))
    if precision == "fp16" and config.use_cpu:
        found.append(wrong(_NAME, "mixed_precision: fp16 needs a GPU; use bf16 or no"))
    if engine == "fsdp2" and config.num_processes == 1:
        found.append(warning(_NAME, "num_processes: 1 leaves fsdp2 nothing to shard; it trains as one process"))
    backend = str((config.dynamo_config or {}).get("dynamo_backend", "NO")).upper()
    if backend != "NO":
        found.append(warning(_NAME, f"dynamo_backend: {backend}: sparse layers are not tested under torch.compile"))
    return [*found]


def _precision(config: ClusterConfig) -> str:
    # YAML reads a bare `no` as false.
    return "no" if config.mixed_precision in (None, False) else str(config.mixed_precision)
