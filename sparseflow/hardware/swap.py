"""The swap: which layers can be sparse, the dense layer taken out and the sparse one put in, and back."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from sparseflow.hardware import backends
from sparseflow.hardware.layers import SparseConv2d, SparseLayer, SparseLinear
from sparseflow.hardware.names import dense_name
from sparseflow.hardware.optimizers import mark_replaced, rebind
from sparseflow.hardware.workload import Geometry

_CONV1D = ("transformers.pytorch_utils", "Conv1D")


@dataclass
class Site:
    """One prunable weight: its dense name, the layers that hold it, and every place where they are registered."""

    name: str
    modules: list[nn.Module] = field(default_factory=list)
    places: list[tuple[nn.Module | None, str]] = field(default_factory=list)

    @property
    def module(self) -> nn.Module:
        return self.modules[0]

    @property
    def weight(self) -> nn.Parameter:
        """The parameter that is trained: the dense weight or the sparse values."""
        module = self.module
        parameter = module.values if isinstance(module, SparseLayer) else module.weight
        assert isinstance(parameter, nn.Parameter)
        return parameter

    @property
    def transposed(self) -> bool:
        """Whether the dense parameter is stored (in, out), as in transformers' Conv1D."""
        module = self.module
        return module.transposed if isinstance(module, SparseLayer) else _is_conv1d(module)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense parameter."""
        module = self.module
        return module.weight_shape if isinstance(module, SparseLayer) else tuple(self.weight.shape)


@dataclass(frozen=True)
class Survey:
    """What was found in a model: prunable weights by dense name, and why other layers stay dense.

    `tied` leads from the name of a weight to the name under which the same weight is a site.
    """

    sites: dict[str, Site]
    left_dense: dict[str, str]
    tied: dict[str, str]

    def find(self, name: str, mask: Tensor) -> Site:
        """The site of a mask. `ValueError` for a wrong name, shape or dtype, or a layer that cannot be sparse."""
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask {name!r}: expected a bool tensor (True = kept), got {type(mask).__name__}")
        if name in self.left_dense:
            raise ValueError(f"mask {name!r}: this weight stays dense, because {self.left_dense[name]}")
        if name in self.tied:
            raise ValueError(
                f"mask {name!r}: this weight is tied to {self.tied[name]!r}; give that one the mask of both"
            )
        if name not in self.sites:
            near = difflib.get_close_matches(name, self.sites, n=1)
            hint = f"; nearest: {near[0]!r}" if near else ""
            raise ValueError(f"mask {name!r} names no prunable weight of the model{hint}")
        site = self.sites[name]
        if tuple(mask.shape) != site.shape:
            raise ValueError(f"mask {name!r}: expected shape {site.shape}, got {tuple(mask.shape)}")
        if mask.dtype != torch.bool:
            raise ValueError(f"mask {name!r}: expected a bool tensor (True = kept), got {mask.dtype}")
        return site


def survey(model: nn.Module) -> Survey:
    """Looks through a model once. Shared modules are one site with many places, tied weights one with many modules."""
    owners = _owners(model)
    found = Survey({}, {}, {})
    for path, module in model.named_modules():
        name = dense_name(f"{path}.weight" if path else "weight")
        reason = _why_dense(module)
        if reason is None:
            sharing = owners[id(Site(name, [module]).weight)]
            first_name, first = sharing[0]
            reason = _why_not_tied(module, sharing)
            if reason is None and first is module:
                found.sites[name] = Site(name, [owner for _, owner in sharing])
            elif reason is None:
                found.tied[name] = first_name
        if reason:
            found.left_dense[name] = reason
    _add_places(model, found.sites)
    return found


def _why_not_tied(module: nn.Module, sharing: list[tuple[str, nn.Module]]) -> str | None:
    # One structure serves all owners of a weight only where they all use it alike.
    for name, other in sharing:
        if type(other) is not type(module) or _why_dense(other) is not None:
            return f"it is tied to {name!r} of {type(other).__name__}"
        if geometry_of(other) != geometry_of(module):
            return f"it is tied to {name!r}, which uses it with another stride, padding, dilation or groups"
    return None


def _owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            key = "weight" if key == "values" and isinstance(module, SparseLayer) else key
            name = dense_name(f"{path}.{key}" if path else key)
            owners.setdefault(id(parameter), []).append((name, module))
    return owners


def _add_places(model: nn.Module, sites: dict[str, Site]) -> None:
    by_module = {id(module): site for site in sites.values() for module in site.modules}
    if id(model) in by_module:
        by_module[id(model)].places.append((None, ""))
    for parent in model.modules():
        for key, child in parent._modules.items():
            if id(child) in by_module:
                by_module[id(child)].places.append((parent, key))


def _why_dense(module: nn.Module) -> str | None:
    """None: can be sparse. A reason: looks prunable but stays dense. '': not a prunable kind at all."""
    if isinstance(module, SparseLayer):
        return None
    kind = _prunable_class(module)
    if kind is None:
        return ""
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "it is parametrised"
    if type(module) is not kind:
        return f"{type(module).__name__} is a subclass of {kind.__name__}"
    if "weight" not in module._parameters:
        return "its weight is computed from other parameters (weight norm, or torch.nn.utils.prune)"
    if "forward" in module.__dict__:
        return "its forward was replaced on the object"
    more = {*module._parameters, *module._buffers, *module._modules} - {"weight", "bias"}
    return f"beside weight and bias it holds {', '.join(sorted(more))}" if more else None


def _prunable_class(module: nn.Module) -> type | None:
    for kind in type(module).__mro__:
        if kind in (nn.Linear, nn.Conv2d) or (kind.__module__, kind.__name__) == _CONV1D:
            return kind
    return None


def geometry_of(module: nn.Module) -> Geometry:
    """What a backend must know of a prunable layer beside its weight's shape."""
    if isinstance(module, SparseLayer):
        return module.geometry
    if not isinstance(module, nn.Conv2d):
        return Geometry()
    (s0, s1), (d0, d1) = module.stride, module.dilation
    p0, p1 = (0, 0) if extra_padding_of(module) else _symmetric_padding(module)
    return Geometry("conv2d", (s0, s1), (p0, p1), (d0, d1), module.groups)


def _symmetric_padding(module: nn.Conv2d) -> tuple[int, int]:
    left, right, top, bottom = module._reversed_padding_repeated_twice
    assert left == right and top == bottom
    return top, left


def extra_padding_of(module: nn.Module) -> tuple[int, ...] | None:
    """(left, right, top, bottom), as F.pad takes it, where a convolution pads its input itself; else None."""
    if isinstance(module, SparseConv2d):
        return module.extra_padding
    if not isinstance(module, nn.Conv2d):
        return None
    # torch keeps it ready for its own padding modes.
    padding = tuple(module._reversed_padding_repeated_twice)
    symmetric = padding[0] == padding[1] and padding[2] == padding[3]
    return None if module.padding_mode == "zeros" and symmetric else padding


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
    return SparseLinear(backend, op, values, bias, geometry, tuple(module.weight.shape), _is_conv1d(module))


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
        conv1d = importlib.import_module(_CONV1D[0]).Conv1D
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


def _is_conv1d(module: nn.Module) -> bool:
    return (type(module).__module__, type(module).__name__) == _CONV1D


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
