"""What a run of the bench covers: on a GPU real layers, in Triton's interpreter tiny ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparseflow_kernels.triton_tune import Tuner


@dataclass(frozen=True)
class Shape:
    """A layer, O outputs and I inputs, and the T tokens of a step."""

    outputs: int
    inputs: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.outputs}×{self.inputs}, {self.tokens} tokens"


SQUARE = Shape(4096, 4096, 8192)
WIDE = Shape(11008, 4096, 8192)


@dataclass(frozen=True)
class Setting:
    """Device, layers, dtypes and densities.

    `densities` are in order of interest: a run that is cut short has measured the first of them. `l2` is the cache,
    in bytes, that inputs must not stay in. `tuner` remembers which tiles were fastest.
    """

    device: torch.device
    shape: Shape
    wide: Shape
    widest: Shape
    dtypes: tuple[torch.dtype, ...]
    densities: tuple[float, ...]
    generator: torch.Generator
    l2: int = 0
    tuner: Tuner = field(default_factory=lambda: Tuner({}))

    @property
    def timed(self) -> bool:
        """Whether times mean anything here: only on a GPU."""
        return self.device.type == "cuda"

    def normal(self, *size: int) -> Tensor:
        """Fresh normal random numbers, float32."""
        return torch.randn(size, generator=self.generator, device=self.device)

    def uniform(self, *size: int) -> Tensor:
        """Fresh random numbers in [0, 1), float32."""
        return torch.rand(size, generator=self.generator, device=self.device)


def full(device: torch.device, seed: int) -> Setting:
    """What a GPU is measured on: layers of a transformer of width 4096, 8192 tokens."""
    return Setting(
        device=device,
        shape=SQUARE,
        wide=WIDE,
        widest=Shape(12288, 12288, 8192),
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        densities=(0.01, 0.05, 0.1, 0.005, 0.001, 0.02),
        generator=torch.Generator(device).manual_seed(seed),
        l2=torch.cuda.get_device_properties(device).L2_cache_size,
    )


def tiny(seed: int) -> Setting:
    """What the interpreter checks, in seconds: small layers, one of them odd, and few tokens."""
    return Setting(
        device=torch.device("cpu"),
        shape=Shape(128, 64, 40),
        wide=Shape(65, 36, 31),
        widest=Shape(64, 64, 32),
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        densities=(0.1,),
        generator=torch.Generator().manual_seed(seed),
    )


def short(dtype: torch.dtype) -> str:
    """fp32, bf16 or fp16."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
