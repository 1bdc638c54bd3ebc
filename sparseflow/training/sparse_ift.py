"""Sparse-IFT: a layer of the same FLOPs and more room: wider, parallel, factorized or doped with a low rank.

Thangarasa et al., 2024 (arXiv:2303.11525). A dense layer costs as many products a row (or place of an image) as it has
weights, a sparse one as many as it keeps. Each function gives masks that keep, together, exactly as many weights as
the dense layer had: the FLOPs are equal to the last one, not to rounding. Masks are random, from a seed.

`parallel`, `factorized` and `doped` replace hidden layers in place: all that could be pruned but for the last, which
gives the output. `wide` compares two models. I inputs, O outputs, s = 1 − density.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseflow import models
from sparseflow.hardware.model import dense_weights
from sparseflow.hardware.survey import survey
from sparseflow.masks import criteria
from sparseflow.masks.keep import drop_lowest
from sparseflow.masks.masks import Masks


class Parallel(nn.Module):
    """y = Σ relu(branch(x)): without a nonlinearity of each, the branches would be one matrix."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, count: int) -> None:
        super().__init__()
        # The first is the layer itself, so that one branch is what was there, but for the ReLU.
        self.branches = nn.ModuleList([layer, *(_redrawn(layer) for _ in range(count - 1))])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([F.relu(branch(x)) for branch in self.branches]).sum(0)


class Factorized(nn.Module):
    """y = up(relu(down(x))), with an inner width of d."""

    def __init__(self, layer: nn.Linear, width: int) -> None:
        super().__init__()
        self.down = _linear(layer, layer.in_features, width, bias=False)
        self.up = _linear(layer, width, layer.out_features, bias=layer.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(F.relu(self.down(x)))
        return y


class Doped(nn.Module):
    """y = sparse(x) + up(down(x)): a sparse matrix doped with a dense one of low rank, which starts at zero."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.sparse = layer
        self.down = _linear(layer, layer.in_features, rank, bias=False)
        self.up = _linear(layer, rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.sparse(x) + self.up(self.down(x))
        return y


def parallel(model: nn.Module, density: float, seed: int = 0) -> Masks:
    """Puts 1 / density branches in the place of each hidden layer, each of about that density; returns their masks.

    For layers that a ReLU follows. At density 1 the model computes what it did. The number of branches is rounded,
    the weights kept are not.
    """

    def transform(layer: nn.Linear | nn.Conv2d, total: int) -> tuple[nn.Module, dict[str, int]]:
        count = max(1, round(1 / density))
        parts = {f"branches.{number}": total for number in range(count)}
        return Parallel(layer, count), _share(parts, total)

    return _transform("parallel", model, density, seed, (nn.Linear, nn.Conv2d), transform)


def factorized(model: nn.Module, density: float, seed: int = 0) -> Masks:
    """Puts two sparse layers, d = I · O / ((I + O) · density) wide between, in the place of each hidden linear layer.

    Returns their masks. At density 1 this is a narrow dense layer, not the one that was there.
    """

    def transform(layer: nn.Linear | nn.Conv2d, total: int) -> tuple[nn.Module, dict[str, int]]:
        assert isinstance(layer, nn.Linear)
        inputs, outputs = layer.in_features, layer.out_features
        # Rounded up: there must be room for all the weights that are kept.
        width = -int(-total // ((inputs + outputs) * density))
        return Factorized(layer, width), _share({"down": width * inputs, "up": width * outputs}, total)

    return _transform("factorized", model, density, seed, (nn.Linear,), transform)


def doped(model: nn.Module, density: float, seed: int = 0) -> Masks:
    """Adds a dense matrix of rank ⌊s · I · O / (I + O)⌋ to each hidden linear layer, which gives up as many weights.

    Returns the masks of the sparse part, of about that density. At density 1 the model computes what it did.
    """

    def transform(layer: nn.Linear | nn.Conv2d, total: int) -> tuple[nn.Module, dict[str, int]]:
        assert isinstance(layer, nn.Linear)
        both = layer.in_features + layer.out_features
        rank = int((1 - density) * total / both)
        return (Doped(layer, rank), {"sparse": total - rank * both}) if rank else (layer, {"": total})

    return _transform("doped", model, density, seed, (nn.Linear,), transform)


def wide(narrow: nn.Module, model: nn.Module, seed: int = 0) -> Masks:
    """Random masks with which each layer of the wide `model` keeps as many weights as that of the narrow one has.

    A network 1 / √density times as wide has then about that density in its hidden layers, more in the first and the
    last. `ValueError` where the layers are not the same ones, or are smaller.
    """
    small, large = dense_weights(narrow), dense_weights(model)
    if small.keys() != large.keys():
        others = ", ".join(sorted(small.keys() ^ large.keys()))
        raise ValueError(f"wide: expected layers of the same names, got some in one of the two alone: {others}")
    for name, weight in large.items():
        if weight.numel() < small[name].numel():
            raise ValueError(
                f"wide: {name}: expected at least the {small[name].numel()} weights of the narrow model, got "
                f"{weight.numel()}"
            )
    return _random(large, {name: weight.numel() for name, weight in small.items()}, seed)


def build(model: str, transform: str, density: float, options: Mapping[str, object] | None = None) -> nn.Module:
    """One of our models with its hidden layers replaced: for recipes, as `sparseflow.training.sparse_ift:build`.

    Masks are the algorithm's: `static` with uniform densities gives the dense FLOPs, to the rounding of inner widths.
    """
    made = models.build(model, options or {})
    choices = {"parallel": parallel, "factorized": factorized, "doped": doped}
    if transform not in choices:
        raise ValueError(f"no transform {transform!r}; available: {', '.join(choices)}")
    choices[transform](made, density)
    return made


_Transform = Callable[[nn.Linear | nn.Conv2d, int], tuple[nn.Module, dict[str, int]]]


def _transform(
    method: str, model: nn.Module, density: float, seed: int, kinds: tuple[type[nn.Module], ...], transform: _Transform
) -> Masks:
    if not 0 < density <= 1:
        raise ValueError(f"{method}: expected a density in (0, 1], got {density}")
    sites = list(survey(model).sites.items())[:-1]
    chosen = [(name, site) for name, site in sites if type(site.module) in kinds and len(site.places) == 1]
    if not chosen:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{method}: expected a hidden layer of type {expected} to replace, found none")
    kept: dict[str, int] = {}
    for name, site in chosen:
        layer, ((parent, key),) = site.module, site.places
        assert parent is not None and isinstance(layer, nn.Linear | nn.Conv2d)
        made, counts = transform(layer, layer.weight.numel())
        parent._modules[key] = made
        path = name.removesuffix(".weight")
        kept |= {".".join(filter(None, (path, part, "weight"))): count for part, count in counts.items()}
    weights = dense_weights(model)
    return _random({name: weights[name] for name in kept}, kept, seed)


def _random(weights: Mapping[str, Tensor], kept: Mapping[str, int], seed: int) -> Masks:
    everywhere = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    drops = {name: weight.numel() - kept[name] for name, weight in weights.items()}
    return Masks(drop_lowest(criteria.random(weights, seed=seed), everywhere, drops))


def _share(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Cuts the total in proportion to the sizes; what rounding leaves goes to the last."""
    whole = sum(sizes.values())
    shares = {name: total * size // whole for name, size in sizes.items()}
    last = next(reversed(shares))
    shares[last] += total - sum(shares.values())
    return shares


def _redrawn(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    twin = copy.deepcopy(layer)
    twin.reset_parameters()
    return twin


def _linear(like: nn.Linear, inputs: int, outputs: int, bias: bool) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias, device=like.weight.device, dtype=like.weight.dtype)
