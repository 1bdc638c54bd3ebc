"""From masks to a smaller dense model with the same outputs: channels that nothing reads are taken out."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparseflow.hardware.plan import densify
from sparseflow.hardware.sample import Sample, call, untouched
from sparseflow.hardware.survey import Site, survey
from sparseflow.masks.channel import reads
from sparseflow.training.proof import TOLERANCE
from sparseflow.training.wiring import Wiring, trace


def shrink(model: nn.Module, masks: Mapping[str, Tensor], sample: Sample) -> nn.Module:
    """A dense model without the channels that no kept weight reads, and with zeros at all other pruned places.

    A channel goes with the row of weights and the bias that make
    it, its BatchNorm, and the columns that would read it; then perhaps channels before it that only it read. Channels
    that `channels` refuses stay. The model given is not changed; the new one is of the same classes, with smaller
    layers. It is run on the sample beside the masked model: `ValueError` where the outputs differ, as where the code
    counts on a width.
    """
    large = densify(copy.deepcopy(model))
    sites = survey(large).sites
    with torch.no_grad():
        for name, mask in masks.items():
            sites[name].weight.mul_(mask.to(sites[name].weight.device))
    wiring = trace(large, sample)
    small = copy.deepcopy(large)
    kept = _kept_channels(wiring, {name: mask.t() if sites[name].transposed else mask for name, mask in masks.items()})
    _cut(small, wiring, kept)
    _check_equal(large, small, sample)
    return small


def _kept_channels(wiring: Wiring, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of each layer whose channels may go, those that a kept weight reads."""
    alive = {name: mask.cpu().clone() for name, mask in masks.items()}
    kept: dict[str, Tensor] = {}
    while True:
        before = dict(kept)
        for name, feeds in wiring.feeds.items():
            if name not in alive or any(reader not in alive for reader in feeds):
                continue
            used = torch.zeros(len(alive[name]), dtype=torch.bool)
            for reader, channels in feeds.items():
                read = alive[reader].movedim(1, 0).flatten(1).any(1) & (channels >= 0)
                used[channels[read]] = True
            if not bool(used.any()):
                raise ValueError(f"shrink: no channel of {name!r} is read, so that nothing of it would be left")
            kept[name] = used
            # What makes a channel that goes reads nothing any more.
            alive[name][~used] = False
        if all(name in before and torch.equal(before[name], one) for name, one in kept.items()):
            return kept


def _cut(model: nn.Module, wiring: Wiring, kept: Mapping[str, Tensor]) -> None:
    sites = survey(model).sites
    modules = dict(model.named_modules())
    columns: dict[str, Tensor] = {}
    for name, used in kept.items():
        for reader, channels in wiring.feeds[name].items():
            gone = reads(channels, ~used)
            columns[reader] = columns.get(reader, torch.ones(len(gone), dtype=torch.bool)) & ~gone
        for path, channels in wiring.norms[name].items():
            _cut_norm(modules[path], ~reads(channels, ~used))
    for name in {*kept, *columns}:
        _cut_layer(sites[name], kept.get(name), columns.get(name))


def _cut_layer(site: Site, rows: Tensor | None, columns: Tensor | None) -> None:
    module, weight = site.module, site.weight.detach()
    turned = weight.t() if site.transposed else weight
    turned = turned if rows is None else turned[rows.to(weight.device)]
    turned = turned if columns is None else turned[:, columns.to(weight.device)]
    module.weight = nn.Parameter((turned.t() if site.transposed else turned).contiguous())
    bias = module._parameters.get("bias")
    if bias is not None and rows is not None:
        module.bias = nn.Parameter(bias.detach()[rows.to(weight.device)])
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = turned.shape
    elif isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = turned.shape[:2]
    else:
        module.nx, module.nf = turned.shape[1], turned.shape[0]  # type: ignore[assignment]


def _cut_norm(module: nn.Module, stays: Tensor) -> None:
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    for key, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[key] = nn.Parameter(parameter.detach()[stays.to(parameter.device)])
    for key, buffer in module._buffers.items():
        if buffer is not None and buffer.dim():
            module._buffers[key] = buffer[stays.to(buffer.device)]
    module.num_features = int(stays.count_nonzero())


def _check_equal(large: nn.Module, small: nn.Module, sample: Sample) -> None:
    outputs = []
    for model in (large, small):
        with untouched(model), torch.no_grad():
            try:
                outputs.append(call(model, sample))
            except RuntimeError as error:
                raise ValueError(f"shrink: the model's code counts on the width of a layer: {error}") from None
    expected, got = outputs
    if not isinstance(expected, Tensor) or not isinstance(got, Tensor):
        raise ValueError(f"shrink: expected a model that returns a tensor, got {type(expected).__name__}")
    if got.shape != expected.shape or not _close(got.double(), expected.double(), TOLERANCE[got.dtype]):
        raise ValueError("shrink: the smaller model's output differs; something in it depends on the width of a layer")


def _close(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((got - expected).pow(2).mean().sqrt() <= tolerance * expected.pow(2).mean().sqrt())
