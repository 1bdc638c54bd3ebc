"""What plain torch offers for a model larger than memory: parameters and AdamW's state mapped by torch.from_file.

As a good engineer would write it: a parameter is updated as soon as its gradient has come, which is then let go, so
that no more than one gradient is in memory, and by the fused AdamW, so that its state is gone through once.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn


class MappedTraining:
    """A model made on the meta device, given weights in files of a folder, and AdamW beside them.

    initialise: fills the parameters of one module.
    """

    def __init__(self, model: nn.Module, folder: Path, lr: float, initialise: Callable[[nn.Module], None]) -> None:
        self.model = model
        self.files: dict[nn.Module, list[tuple[Path, Tensor]]] = {}
        self._optimizers: list[torch.optim.Optimizer] = []
        folder.mkdir()
        for path, module in model.named_modules():
            for key, parameter in list(module._parameters.items()):
                if parameter is not None:
                    self._map(folder / f"{path}.{key}", module, key, tuple(parameter.shape), lr)
            with torch.no_grad():
                if module in self.files:
                    initialise(module)

    def step(self, x: Tensor) -> None:
        """Forward and backward, in which all updates are made."""
        self.model(x).square().mean().backward()

    def forget(self, module: nn.Module) -> None:
        """Has the system keep none of a module's files in memory."""
        for file, tensor in self.files[module]:
            _forget(file, tensor)

    def _map(self, path: Path, module: nn.Module, key: str, shape: tuple[int, ...], lr: float) -> None:
        files = [path.with_name(f"{path.name}.{part}") for part in ("weight", "exp_avg", "exp_avg_sq")]
        weight, mean, square = (
            torch.from_file(str(file), shared=True, size=math.prod(shape), dtype=torch.float32).view(shape)
            for file in files
        )
        parameter = nn.Parameter(weight)
        module._parameters[key] = parameter
        optimizer = torch.optim.AdamW([parameter], lr=lr, fused=True)
        optimizer.state[parameter] = {"step": torch.zeros(()), "exp_avg": mean, "exp_avg_sq": square}
        parameter.register_post_accumulate_grad_hook(partial(_update, optimizer))  # type: ignore[no-untyped-call]
        self.files.setdefault(module, []).extend(zip(files, (weight, mean, square), strict=True))


def _forget(file: Path, tensor: Tensor) -> None:
    # The kernel does not drop a page that is mapped somewhere, nor one that the disk does not have yet.
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    if madvise(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes), mmap.MADV_DONTNEED):
        raise OSError(ctypes.get_errno(), "madvise")
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _update(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    optimizer.step()
    parameter.grad = None
