"""A DeepSpeed engine around a trainer's model: the trainer's optimizer, data and loss, DeepSpeed's shards."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
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
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Imported here: it takes seconds, and reads the environment.
    import deepspeed

    # It prints to standard output, which is for results.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")
    decay = trainer.weight_decay
    optimizer = trainer.make_optimizer(param_groups(model, decay) if decay else list(model.parameters()))
    for group in optimizer.param_groups:
        group["initial_lr"], group["lr"] = group["lr"], 0.0
    engine: Engine = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(config))[0]
    # Stage 0 in bf16 has stepped once, with gradients of zero: it must not decay the weights, nor count as a step.
    engine.basic_optimizer.state.clear()
    return engine


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
