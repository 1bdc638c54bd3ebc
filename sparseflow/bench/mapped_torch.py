"""What plain torch offers for a model larger than memory: parameters and AdamW's state mapped by torch.from_file.

As a good engineer would write it: a parameter is updated as soon as its gradient has come, which is then let go, so that
no more than one gradient is in memory, and each page of a layer's state is visited once a step.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn


class MappedTraining:
    """A model made on the meta device, given weights in files of a folder, and AdamW beside them."""

    def __init__(self, model: nn.Module, folder: Path, lr: float) -> None:
        self.model = model
        self.files: dict[nn.Module, list[Path]] = {}
        self._optimizers: list[torch.optim.Optimizer] = []
        folder.mkdir()
        for path, module in model.named_modules():
            for key, parameter in list(module._parameters.items()):
                if parameter is not None:
                    self._map(folder / f"{path}.{key}", module, key, tuple(parameter.shape), lr)

    def step(self, x: Tensor) -> None:
        """Forward and backward, in which all updates are made."""
        self.model(x).square().mean().backward()

    def _map(self, path: Path, module: nn.Module, key: str, shape: tuple[int, ...], lr: float) -> None:
        files = [path.with_name(f"{path.name}.{part}") for part in ("weight", "exp_avg", "exp_avg_sq")]
        weight, mean, square = (
            torch.from_file(str(file), shared=True, size=math.prod(shape), dtype=torch.float32).view(shape)
            for file in files
        )
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        parameter = nn.Parameter(weight)
        module._parameters[key] = parameter
        optimizer = torch.optim.AdamW([parameter], lr=lr, fused=True)
        optimizer.state[parameter] = {"step": torch.zeros(()), "exp_avg": mean, "exp_avg_sq": square}
        parameter.register_post_accumulate_grad_hook(partial(_update, optimizer))
        self.files.setdefault(module, []).extend(files)


def _update(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    optimizer.step()
    parameter.grad = None
