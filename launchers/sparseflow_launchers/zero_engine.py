"""A DeepSpeed engine around a trainer's model: the trainer's optimizer, data and loss, DeepSpeed's shards."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.hardware.model import param_groups
from sparseflow.training.trainer import Trainer
from sparseflow_launchers.zero_slices import Engine


def make_zero_engine(trainer: Trainer, model: nn.Module, config: Mapping[str, Any]) -> Engine:
    """A DeepSpeed engine with the model, which becomes its own, and a new optimizer of the trainer's.

    config: DeepSpeed's, as `zero_config.settle` gives it. All ranks call it, in a launch that has begun. The first
    one on a machine without GPU compiles a small library, which takes half a minute and a C++ compiler.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Imported here: it takes seconds, and reads the environment.
    import deepspeed

    # It prints to standard output, which is for results.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not on_gpu:
        load_cpu_library()
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo")
    decay = trainer.weight_decay
    optimizer = trainer.make_optimizer(param_groups(model, decay) if decay else list(model.parameters()))
    for group in optimizer.param_groups:
        group["initial_lr"], group["lr"] = group["lr"], 0.0
    engine: Engine = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(config))[0]
    # Stage 0 in bf16 has stepped once, with gradients of zero: it must not decay the weights, nor count as a step.
    engine.basic_optimizer.state.clear()
    return engine


def load_cpu_library() -> None:
    """Loads, and compiles where need be, what DeepSpeed uses without a GPU: one process of a machine at a time.

    torch guards a build by a file, which a process that is killed leaves behind, and all others then wait for its
    removal, for ever. The system's lock ends with its process; who has it knows that torch's file is nobody's.
    """
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory

    accelerator: Any = get_accelerator()
    builder: Any = accelerator.create_op_builder("ShareMemCommBuilder")
    # It does without where it cannot compile it.
    if builder is None or not deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        return
    folder = Path(_get_build_directory("deepspeed_shm_comm", verbose=False))
    with open(folder / ".sparseflow-lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)


def set_rate(engine: Engine, factor: float) -> None:
    """Sets the learning rate of each group to `factor` times its own."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


class InFloat32(nn.Module):
    """The engine as a model whose inputs and outputs are fp32, whatever its weights are."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self._dtype: torch.dtype = engine.get_data_types()[0]

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.engine(x.to(self._dtype) if x.is_floating_point() else x)
        return output.float()
