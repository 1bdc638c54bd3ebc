"""Row 21: what dynamic methods do exactly: RigL's counts and state, SPDF's densification and its FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from math import cos, floor, pi
from typing import Any

import torch
from torch import Tensor

from sparseflow import models
from sparseflow.hardware.flops import layer_flops, step_flops
from sparseflow.hardware.model import current_masks, dense_weights, sparse_layers
from sparseflow.hardware.plan import remask, sparsify
from sparseflow.masks.dynamic import RigL
from sparseflow.masks.masks import Masks
from sparseflow.masks.phases import SPDF
from sparseflow.reproduction.outcome import Outcome
from sparseflow.reproduction.searches import LENET
from sparseflow.reproduction.small import network

_SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def structure(seeds: Sequence[int]) -> Outcome:
    """Row 21a: all laws, each a yes or a no."""
    found = {
        "RigL's counts": all(_rigl_counts(seed) for seed in seeds),
        "momentum zero at new weights alone": all(_momentum(seed) for seed in seeds),
        "densified outputs bit-equal": all(_densifies(seed) for seed in seeds),
        "SPDF's FLOPs": _spdf_flops(),
    }
    return Outcome(all(found.values()), "; ".join(f"{what}: {'yes' if held else 'no'}" for what, held in found.items()))


def iso_flop(seeds: Sequence[int]) -> Outcome:
    """Row 21b: layers of Sparse-IFT take the FLOPs of the dense ones that they replace."""
    sparse_ift: Any = import_module("sparseflow.training.sparse_ift")
    shown, holds = [], True
    for name in ("parallel", "factorized", "doped"):
        ratios = []
        for density in (1.0, 0.5, 0.25, 0.1):
            dense, model = models.lenet_300_100(), models.lenet_300_100()
            kept = getattr(sparse_ift, name)(model, density).kept
            # Rows are the same everywhere in an MLP: FLOPs are in proportion to the weights.
            spent = sum(kept.get(each, weight.numel()) for each, weight in dense_weights(model).items())
            ratios.append(spent / sum(weight.numel() for weight in dense_weights(dense).values()))
        holds = holds and all(ratio == 1.0 for ratio in ratios)
        shown.append(f"{name} {', '.join(f'{ratio:.6g}' for ratio in ratios)}")
    return Outcome(holds, "; ".join(shown))


def _rigl_counts(seed: int) -> bool:
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in LENET.items()}
    gradients = {name: torch.randn(shape, generator=generator) for name, shape in LENET.items()}
    method = RigL(0.1, until=750)
    masks = method.start(weights, seed)
    step = 300
    after = method.update(step, weights, masks, gradients, seed)
    fraction = 0.3 / 2 * (1 + cos(pi * step / 750))
    for name, mask in masks.items():
        kept = int(mask.sum())
        replaced = floor(fraction * kept)
        smallest = weights[name][mask].abs().sort().values[:replaced]
        # Some of what is dropped is grown again: it is among the candidates.
        stays = mask & (weights[name].abs() > (smallest[-1] if replaced else -1.0))
        if int(after[name].sum()) != kept or not bool(after[name][stays].all()):
            return False
    return True


def _momentum(seed: int) -> bool:
    torch.manual_seed(seed)
    model, generator = network(), torch.Generator().manual_seed(seed)
    masks = _random(model, 0.5, generator)
    sparsify(model, masks, backend="dense-compact")
    optimizer = _SGD(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(torch.nn.functional.cross_entropy(model(torch.randn(20, 12)), torch.arange(20) % 3))
        optimizer.step()
    before = _momenta(model, optimizer)
    new = _random(model, 0.5, generator)
    remask(model, new, optimizer)
    after = _momenta(model, optimizer)
    return all(
        torch.equal(after[name], torch.where(new[name] & mask, before[name], 0.0)) for name, mask in masks.items()
    )


def _densifies(seed: int) -> bool:
    torch.manual_seed(seed)
    model, x = network().eval(), torch.randn(20, 12)
    weights = dense_weights(model)
    method = SPDF(0.25, sparse_steps=5)
    sparsify(model, method.start(weights, seed), backend="dense")
    before = model(x)
    masks = method.update(4, dense_weights(model), current_masks(model), None, seed)
    remask(model, masks)
    return masks.density == 1.0 and torch.equal(before, model(x))


def _spdf_flops() -> bool:
    """1 / (f + (1 − s) (1 − f)) times fewer for a fraction f of dense steps, at equal density in every layer."""
    model = network()
    total = {name: weight.numel() for name, weight in dense_weights(model).items()}
    layers = layer_flops(model, Masks.ones({n: w.shape for n, w in dense_weights(model).items()}), torch.zeros(20, 12))
    dense = step_flops(layers, total, total)
    kept = {name: count // 4 for name, count in total.items()}
    spent = 0.2 * dense + 0.8 * step_flops(layers, kept, total)
    return abs(dense / spent - 1 / (0.2 + 0.25 * 0.8)) < 1e-9


def _random(model: torch.nn.Module, density: float, generator: torch.Generator) -> Masks:
    weights = dense_weights(model)
    return Masks({name: torch.rand(weight.shape, generator=generator) < density for name, weight in weights.items()})


def _momenta(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Dense name → momentum, zero where a weight is pruned."""
    return {
        name: layer.unpack(optimizer.state[layer.values]["momentum_buffer"])
        for name, layer in sparse_layers(model).items()
    }
