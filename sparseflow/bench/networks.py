"""The networks of the speed table, each with one batch of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from sparseflow.models import gpt, lenet_300_100, resnet20
from sparseflow.training.pruning import ParamFilter


@dataclass(frozen=True)
class Case:
    """A network and what one step trains it on.

    `target` holds class indices, for cross-entropy, or, for a lone layer, the gradient of its output. An `x` that
    requires a gradient gets one in every step.
    """

    name: str
    build: Callable[[], nn.Module]
    x: Tensor
    target: Tensor
    threads: int
    prunable: ParamFilter | None = None


def mlp_narrow() -> Case:
    """Four layers of 1024×1024, batches of 128."""
    return mlp("MLP 1024×4 b128", (1024,) * 5, batch=128)


def mlp_wide() -> Case:
    """1024 → 4096 → 1024 → 4096 → 1024, batches of 512."""
    return mlp("MLP 1024/4096 b512", (1024, 4096, 1024, 4096, 1024), batch=512)


def mlp(name: str, widths: tuple[int, ...], batch: int, threads: int = 2) -> Case:
    """Linear layers of these widths with ReLU between."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    x = torch.randn(batch, widths[0], generator=_generator())
    return Case(name, build, x, _classes(widths[-1], batch), threads)


def conv(channels: int, size: int, threads: int = 1) -> Case:
    """One convolution 3×3 of 64 images, `channels` to `channels`, whose input needs a gradient; plain NCHW."""
    generator = _generator()
    x, dy = (torch.randn(64, channels, size, size, generator=generator) for _ in range(2))

    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False))

    return Case(f"conv 3×3 {channels}→{channels} {size}×{size} b64", build, x.requires_grad_(), dy, threads)


def lenet(threads: int) -> Case:
    """LeNet-300-100, batches of 60."""
    x = torch.randn(60, 784, generator=_generator())
    return Case("LeNet-300-100 b60", lenet_300_100, x, _classes(10, 60), threads)


def resnet() -> Case:
    """ResNet-20 on images of CIFAR's size, batches of 128."""
    x = torch.randn(128, 3, 32, 32, generator=_generator())
    return Case("ResNet-20 32×32 b128", lambda: resnet20(channels=3), x, _classes(10, 128), 2)


def language() -> Case:
    """The GPT of the recipe `gpt`: 4 layers of width 128, 32 sequences of 128 characters; blocks are pruned."""
    vocabulary, shape = 96, (32, 128)
    x = torch.randint(vocabulary, shape, generator=_generator())
    return Case("GPT 4×128 b32", lambda: gpt(vocabulary), x, _classes(vocabulary, *shape), 2, "blocks.*")


def _classes(count: int, *shape: int) -> Tensor:
    return torch.randint(count, shape, generator=_generator())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
