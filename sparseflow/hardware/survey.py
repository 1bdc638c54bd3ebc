"""Which layers of a model can be sparse, under which names, where they are registered, and why others cannot."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparseflow.hardware.layers import SparseConv2d, SparseLayer
from sparseflow.hardware.names import dense_name
from sparseflow.hardware.streaming.classes import class_of
from sparseflow.hardware.workload import Geometry

CONV1D = ("transformers.pytorch_utils", "Conv1D")


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
        # Of a streamed model this stands for a weight that is not here.
        parameter = module.values if isinstance(module, SparseLayer) else module._parameters["weight"]
        assert isinstance(parameter, nn.Parameter)
        return parameter

    @property
    def transposed(self) -> bool:
        """Whether the dense parameter is stored (in, out), as in transformers' Conv1D."""
        module = self.module
        return module.transposed if isinstance(module, SparseLayer) else is_conv1d(module)

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
            raise ValueError(f"mask {name!r}: this weight is tied to {self.tied[name]!r}; give that one the mask")
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
        if class_of(other) is not class_of(module) or _why_dense(other) is not None:
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
    if class_of(module) is not kind:
        return f"{type(module).__name__} is a subclass of {kind.__name__}"
    if "weight" not in module._parameters:
        return "its weight is computed from other parameters (weight norm, or torch.nn.utils.prune)"
    weight = module._parameters["weight"]
    if weight is None or not weight.numel():
        return "it has no weights"
    if "forward" in module.__dict__:
        return "its forward was replaced on the object"
    more = {*module._parameters, *module._buffers, *module._modules} - {"weight", "bias"}
    return f"beside weight and bias it holds {', '.join(sorted(more))}" if more else None


def _prunable_class(module: nn.Module) -> type | None:
    for kind in type(module).__mro__:
        if kind in (nn.Linear, nn.Conv2d) or (kind.__module__, kind.__name__) == CONV1D:
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


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a linear layer whose weight is stored (in, out)."""
    kind = class_of(module)
    return (kind.__module__, kind.__name__) == CONV1D
