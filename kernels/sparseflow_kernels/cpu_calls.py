"""What a call of a CPU kernel begins with, linear or convolution: checked tensors, and what was prepared for them."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from sparseflow_kernels.cpu_ir import Storage

STORAGE: dict[torch.dtype, Storage] = {torch.float32: "f32", torch.bfloat16: "bf16"}

# Named, because torch.device as a context would have tensors made elsewhere.
CPU = torch.device("cpu")

# Below this many multiply-adds a second thread costs more than it brings.
ALONE = 200_000

C = TypeVar("C")


def keep(calls: dict[object, C], key: object, call: C, most: int) -> C:
    """Remembers a prepared call; of more than `most` the oldest goes, since sizes that never repeat fill the memory."""
    if len(calls) >= most:
        # Another Python thread may have been here first.
        calls.pop(next(iter(calls), None), None)
    calls[key] = call
    return call


def flat_float32(values: Tensor) -> Tensor:
    """Values or bias as kernels read them. `ValueError` where they are not on the CPU."""
    if not values.is_cpu:
        raise ValueError(f"expected values and bias on the CPU, got {values.device}")
    if values.dtype is not torch.float32:
        values = values.float()
    return values if values.is_contiguous() else values.contiguous()


def check_bias(bias: Tensor | None, outputs: int) -> None:
    """`ValueError` unless there is one number for each output, or no bias."""
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"expected a bias of shape ({outputs},), got {tuple(bias.shape)}")


def check_output(name: str, given: Tensor | None, shape: tuple[int, ...], x: Tensor) -> None:
    """`ValueError` unless a tensor like the output, where there is one, has that shape and x's dtype."""
    if given is not None and (given.shape != shape or given.dtype != x.dtype):
        raise ValueError(f"{name}: expected {shape} of {x.dtype}, got {tuple(given.shape)} of {given.dtype}")
