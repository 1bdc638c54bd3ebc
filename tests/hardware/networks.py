"""Small models for the hardware tests, and their masks."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.hardware.model import dense_weights

BACKENDS = ("dense", "dense-compact")


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 5))


def random_masks(model: nn.Module, density: float = 0.4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, weight in dense_weights(model).items():
        masks[name] = torch.rand(weight.shape, generator=generator) < density
        masks[name].view(-1)[0] = True
    return masks


def masked_twin(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """A dense copy with the pruned weights set to zero: what the sparse model must compute."""
    twin = copy.deepcopy(model)
    parameters = dict(twin.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)
    return twin


def twins(model: nn.Module, backend: str, density: float = 0.4) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """(masked dense model, sparse model, masks) with equal weights."""
    masks = random_masks(model, density)
    return masked_twin(model, masks), sf.sparsify(copy.deepcopy(model), masks, backend=backend), masks
