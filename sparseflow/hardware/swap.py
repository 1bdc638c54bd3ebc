"""The swap: the dense layer taken out and the sparse one put in, and back."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from sparseflow.hardware import backends
from sparseflow.hardware.layers import SparseConv2d, SparseLayer, SparseLinear
from sparseflow.hardware.optimizers import mark_replaced, rebind
from sparseflow.hardware.survey import CONV1D, Site, extra_padding_of, geometry_of, is_conv1d


def pack_mask(site: Site, mask: Tensor, backend: str, layout: str) -> backends.SparseOp:
    """The op of a dense parameter's mask, on the weight's device."""
    logical = mask.t() if site.transposed else mask
    return backends.get(backend).pack(logical.to(site.weight.device).contiguous(), layout)


def to_sparse(
    site: Site, op: backends.SparseOp, backend: str, optimizer: torch.optim.Optimizer | None
) -> dict[int, SparseLayer]:
    """Makes the sparse layers of a site; returns them by id of the dense ones. Changes optimizer and weights' marks.

    The dense parameter's values at kept places move into `values`, exactly.
    """
    dense, transposed = site.weight, site.transposed

    def pack(tensor: Tensor) -> Tensor:
        return op.pack_values(tensor.t() if transposed else tensor)

    values = nn.Parameter(pack(dense.detach()), requires_grad=dense.requires_grad)
    if optimizer is not None:
        rebind(optimizer, dense, values, pack)
    mark_replaced(dense)
    layers = {}
    for module in site.modules:
        layer = _sparse_layer(module, backend, op, values)
        _carry_over(module, layer)
        layers[id(module)] = layer
    return layers


def _sparse_layer(module: nn.Module, backend: str, op: backends.SparseOp, values: nn.Parameter) -> SparseLayer:
    geometry = geometry_of(module)
    bias = cast("nn.Parameter | None", module.bias)
    if isinstance(module, nn.Conv2d):
        shape, extra = tuple(module.weight.shape), extra_padding_of(module)
        return SparseConv2d(backend, op, values, bias, geometry, shape, extra, module.padding_mode)
    assert isinstance(module.weight, Tensor)
    return SparseLinear(backend, op, values, bias, geometry, tuple(module.weight.shape), is_conv1d(module))


def to_dense(site: Site, optimizer: torch.optim.Optimizer | None) -> dict[int, nn.Module]:
    """The original classes with zeros at pruned places; returns them by id of the sparse layers."""
    first = site.module
    assert isinstance(first, SparseLayer)
    values = first.values
    weight = nn.Parameter(first.unpack(values.detach()), requires_grad=values.requires_grad)
    if optimizer is not None:
        rebind(optimizer, values, weight, first.unpack)
    mark_replaced(values)
    layers: dict[int, nn.Module] = {}
    for module in site.modules:
        assert isinstance(module, SparseLayer)
        layer = _dense_layer(module)
        layer.weight = weight
        layer.register_parameter("bias", module.bias)
        _carry_over(module, layer)
        layers[id(module)] = layer
    return layers


def _dense_layer(module: SparseLayer) -> nn.Module:
    # On meta first: nothing is drawn from the RNG for a weight that is replaced at once.
    bias = module.bias is not None
    if isinstance(module, SparseConv2d):
        return _dense_conv2d(module, bias)
    assert isinstance(module, SparseLinear)
    if module.transposed:
        conv1d = importlib.import_module(CONV1D[0]).Conv1D
        with torch.device("meta"):
            made: nn.Module = conv1d(module.out_features, module.in_features)
        return made
    return nn.Linear(module.in_features, module.out_features, bias=bias, device="meta")


def _dense_conv2d(module: SparseConv2d, bias: bool) -> nn.Conv2d:
    g = module.geometry
    padding: tuple[int, int] | str = g.padding
    if module.extra_padding is not None:
        left, right, top, bottom = module.extra_padding
        # Only padding="same" pads its two sides differently.
        padding = (top, left) if (left, top) == (right, bottom) else "same"
    return nn.Conv2d(
        module.in_channels,
        module.out_channels,
        module.weight_shape[2:],  # type: ignore[arg-type]
        stride=g.stride,
        padding=padding,
        dilation=g.dilation,
        groups=g.groups,
        bias=bias,
        padding_mode=module.padding_mode,  # type: ignore[arg-type]
        device="meta",
    )


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def _carry_over(source: nn.Module, target: nn.Module) -> None:
    target.training = source.training
    for hooks in _HOOKS:
        # The same dict, so that a hook's handle still removes it.
        setattr(target, hooks, getattr(source, hooks))
    target._is_full_backward_hook = source._is_full_backward_hook


def hooked(module: nn.Module) -> bool:
    """Whether anybody has hooks on the module's forward or backward."""
    return any(getattr(module, hooks) for hooks in _HOOKS)


def put(model: nn.Module, site: Site, layers: Mapping[int, nn.Module]) -> nn.Module:
    """Registers new layers wherever the old ones stood; returns the model, or the layer where that is the model."""
    root = model
    for parent, key in site.places:
        if parent is None:
            root = layers[id(model)]
            continue
        old = parent._modules[key]
        assert old is not None
        parent._modules[key] = layers[id(old)]
    return root
