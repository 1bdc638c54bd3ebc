"""A DeepSpeed configuration beside a recipe: what one says the other must not contradict.

The recipe says how the network is trained; the configuration, how that is laid out over the ranks. `"auto"` in the
configuration is what the recipe says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseflow.recipes import TrainingSpec

_BATCH = "train_batch_size"
_MICRO = "train_micro_batch_size_per_gpu"
_ACCUMULATE = "gradient_accumulation_steps"
_CLIP = "gradient_clipping"

# What would train another network than the recipe's, or cut it in a way that the slices do not know.
_REFUSED = {
    "optimizer": "the recipe names the optimizer; remove it, and its parameters, from the configuration",
    "scheduler": "the recipe names the schedule of the learning rate; remove it from the configuration",
    "fp16": "its loss scale skips steps, which would no longer be those of the recipe; use bf16",
    "amp": "use bf16",
    "tensor_parallel": "weights are taken from data-parallel shards alone; remove it",
    "pipeline": "weights are taken from data-parallel shards alone; remove it",
    "curriculum_learning": "the recipe says which examples a step sees; remove it",
    "data_efficiency": "the recipe says which examples a step sees; remove it",
    "compression_training": "pruning is what sparseflow does; remove it",
    "sparse_gradients": "remove it",
}
_REFUSED_ZERO = {
    "round_robin_gradients": "DeepSpeed then loses track of whose weights are where; set it to false",
    "zero_hpz_partition_size": "weights are taken from one set of shards alone; remove it",
    "mics_shard_size": "weights are taken from one set of shards alone; remove it",
    "elastic_checkpoint": "checkpoints are read as DeepSpeed writes them without it; set it to false",
}
# What stands for "not so" under a key that is refused.
_NO = (None, False, 0, 1, -1, "auto")


@dataclass(frozen=True)
class Cut:
    """A batch of `world` × `accumulate` micro-batches of `micro` examples."""

    micro: int
    accumulate: int
    world: int


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a JSON file. ValueError where it is not one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--deepspeed {path}: expected a DeepSpeed configuration in JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"--deepspeed {path}: expected a JSON object, got a {type(found).__name__}")
    return found


def settle(config: Mapping[str, Any], spec: TrainingSpec, world: int) -> tuple[dict[str, Any], Cut]:
    """The configuration with every "auto" replaced, and how a batch is cut; ValueError where recipe and it disagree.

    `accumulate` is the configuration's, or the recipe's where that is "auto" or missing: into how many parts a batch
    is cut is a question of memory.
    """
    _check_supported(config)
    cut = _cut(config, spec, world)
    clip = config.get(_CLIP, "auto")
    if clip != "auto" and float(clip) != (spec.clip or 0.0):
        raise ValueError(
            f'DeepSpeed {_CLIP}: expected "auto" or training.clip of the recipe, {spec.clip or 0.0}, got {clip}'
        )
    settled = {
        # Without it there is a line on standard output every ten steps.
        "steps_per_print": 1_000_000_000,
        **config,
        _BATCH: spec.batch_size,
        _MICRO: cut.micro,
        _ACCUMULATE: cut.accumulate,
        _CLIP: spec.clip or 0.0,
        # The recipe's optimizer is torch's, which DeepSpeed calls untested.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return settled, cut


def stage(config: Mapping[str, Any]) -> int:
    """ZeRO's stage, 0 to 3."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def dtype(config: Mapping[str, Any]) -> str:
    """What the forward computes in: bf16 or fp32."""
    return "bf16" if config.get("bf16", {}).get("enabled") else "fp32"


def describe(config: Mapping[str, Any]) -> str:
    """Stage and dtype in words."""
    return f"ZeRO-{stage(config)}, {dtype(config)}"


def _check_supported(config: Mapping[str, Any]) -> None:
    for key in ("zero_optimization", "bf16"):
        if not isinstance(config.get(key, {}), dict):
            raise ValueError(f"DeepSpeed {key}: expected a JSON object, got {config[key]!r}")
    zero = config.get("zero_optimization", {})
    for place, refused, where in ((config, _REFUSED, ""), (zero, _REFUSED_ZERO, "zero_optimization.")):
        for key, reason in refused.items():
            value = place.get(key)
            if isinstance(value, dict) and value.get("enabled") is False:
                continue
            # True is equal to 1, which is no.
            if value is True or value not in _NO:
                raise ValueError(f"DeepSpeed {where}{key}: not with a recipe: {reason}")
    if zero.get("stage", 0) not in (0, 1, 2, 3):
        raise ValueError(f"DeepSpeed zero_optimization.stage: expected 0 to 3, got {zero['stage']!r}")
    offloaded = [key for key in ("offload_optimizer", "offload_param") if zero.get(key, {}).get("device") == "nvme"]
    if offloaded:
        raise ValueError(f'DeepSpeed zero_optimization.{offloaded[0]}: expected device "cpu" or "none", got "nvme"')


def _cut(config: Mapping[str, Any], spec: TrainingSpec, world: int) -> Cut:
    batch = _number(config, _BATCH)
    if batch is not None and batch != spec.batch_size:
        raise ValueError(
            f'DeepSpeed {_BATCH}: expected "auto" or training.batch_size of the recipe, {spec.batch_size}, got {batch}'
        )
    accumulate, micro = _number(config, _ACCUMULATE), _number(config, _MICRO)
    if accumulate is None and micro is not None and spec.batch_size % (micro * world) == 0:
        accumulate = spec.batch_size // (micro * world)
    accumulate = accumulate or spec.accumulate
    if micro is None:
        micro = spec.batch_size // (world * accumulate)
    if micro * accumulate * world != spec.batch_size or micro < 1:
        raise ValueError(
            f"training.batch_size {spec.batch_size} is not processes × {_ACCUMULATE} × {_MICRO} = {world} × "
            f"{accumulate} × {micro or 1}; start another number of processes, or change one of these"
        )
    return Cut(micro, accumulate, world)


def _number(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key, "auto")
    if value == "auto":
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f'DeepSpeed {key}: expected "auto" or a number of at least 1, got {value!r}')
    return value
