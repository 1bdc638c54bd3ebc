"""The classes that modules of a streamed model have: their parameters are properties that fetch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from sparseflow.hardware.streaming.units import Unit

_OWNER = "_sparseflow_stream"


class Owner(Protocol):
    """What a module asks the stream that it belongs to."""

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        ...

    def weight(self, unit: Unit, key: str) -> Tensor:
        """The dense weight, as autograd should see it."""
        ...

    def run(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward of the whole model."""
        ...

    def saved(self, unit: Unit, key: str) -> dict[str, Tensor]:
        """Suffix of the key → tensor, as state dicts hold it."""
        ...

    def load(self, unit: Unit, key: str, found: Mapping[str, Tensor]) -> None:
        """Takes what `saved` gave, or a dense weight under the suffix ''."""
        ...


class StreamedModule(nn.Module):
    """What a module of a streamed model does differently; its class is made of this and of the class that it had."""

    def __setattr__(self, name: str, value: Any) -> None:
        unit = _unit_of(self)
        if unit is not None and name in unit.weights:
            raise AttributeError(
                f"{name!r} of {unit.name!r} lives in a store: write it with "
                f"stream_of(model).write({unit.weights[name].name!r}, tensor), and freeze it through "
                "model.named_parameters()"
            )
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise TypeError(
            f"a streamed {_kind(self).__name__} cannot be copied: its weights lie in a store, which one model has; "
            "save model.state_dict() and load it into another model"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"a streamed {_kind(self).__name__} cannot be pickled: its weights lie in a store; save model.state_dict()"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        _check_unmoved(_owner(self).device, fn)
        with _without_parameters(self):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        unit = _unit_of(self)
        for key in () if unit is None else unit.weights:
            assert unit is not None
            for suffix, tensor in _owner(self).saved(unit, key).items():
                destination[prefix + key + suffix] = tensor
        with _without_parameters(self):
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        unit, rest = _unit_of(self), dict(state_dict)
        for key in () if unit is None else unit.weights:
            assert unit is not None
            found = {s: rest.pop(prefix + key + s) for s in ("", "_values", "_mask") if prefix + key + s in rest}
            try:
                _owner(self).load(unit, key, found)
            except KeyError:
                missing_keys.append(prefix + key)
            except ValueError as error:
                error_msgs.append(f"{prefix}{key}: {error}")
        with _without_parameters(self):
            super()._load_from_state_dict(
                rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )


def adopt(module: nn.Module, unit: Unit | None, owner: Owner, root: bool) -> None:
    """Makes the module one of a streamed model. unit: what it holds, if it has parameters. root: the whole model."""
    keys = () if unit is None else tuple(unit.weights)
    module.__dict__[_OWNER] = (owner, unit)
    made = type(module), keys, root
    if made not in _MADE:
        _MADE[made] = _streamed(*made)
    module.__class__ = _MADE[made]


def adopt_all(
    model: nn.Module, units: Mapping[str, Unit], parameters: Mapping[str, nn.Parameter], owner: Owner
) -> None:
    """Makes a whole model streamed. parameters: what stands for each in it. Buffers on the meta device stay empty."""
    by_module = {id(unit.module): unit for unit in units.values()}
    for module in list(model.modules()):
        unit = by_module.get(id(module))
        for key, weight in {} if unit is None else unit.weights.items():
            module._parameters[key] = parameters[weight.name]
        for key, buffer in module._buffers.items():
            if buffer is not None:
                is_meta = buffer.is_meta
                module._buffers[key] = (
                    torch.empty_like(buffer, device=owner.device) if is_meta else buffer.to(owner.device)
                )
        adopt(module, unit, owner, root=module is model)


def owner_of(module: nn.Module) -> Owner | None:
    """The stream that the module belongs to, if any."""
    found = module.__dict__.get(_OWNER)
    return None if found is None else cast(Owner, found[0])


def class_of(module: nn.Module) -> type[nn.Module]:
    """The module's class; the one that it had before it was streamed, where it is."""
    return _kind(module) if isinstance(module, StreamedModule) else type(module)


_MADE: dict[tuple[type[nn.Module], tuple[str, ...], bool], type[nn.Module]] = {}


def _streamed(kind: type[nn.Module], keys: tuple[str, ...], root: bool) -> type[nn.Module]:
    body: dict[str, Any] = {key: property(functools.partial(_fetched, key=key)) for key in keys}
    if root:
        body["forward"] = _whole_forward(kind)
    if issubclass(kind, nn.RNNBase) and keys:
        # Recurrent layers keep a list of their Parameters beside them.
        body["_flat_weights"] = property(_flat_weights, lambda self, weights: None)
    return type(f"Streamed{kind.__name__}", (StreamedModule, kind), {**body, "__module__": __name__})


def _fetched(module: nn.Module, key: str) -> Tensor:
    unit = _unit_of(module)
    assert unit is not None
    return _owner(module).weight(unit, key)


def _flat_weights(module: nn.Module) -> list[Tensor]:
    unit = _unit_of(module)
    assert unit is not None
    return [_owner(module).weight(unit, key) for key in unit.weights]


def _whole_forward(kind: type[nn.Module]) -> Callable[..., Any]:
    # With the names of its arguments, which transformers looks at.
    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _owner(self).run(functools.partial(kind.forward, self), args, kwargs)

    return forward


def _check_unmoved(device: torch.device, fn: Callable[[Tensor], Tensor]) -> None:
    probe = torch.zeros(1, device=device)
    moved = fn(probe)
    if moved.dtype != probe.dtype or moved.device != probe.device:
        raise ValueError(
            f"a streamed model's weights stay float32 in its store, and cannot move to {moved.dtype} on "
            f"{moved.device}; sf.stream takes device= and format="
        )


@contextmanager
def _without_parameters(module: nn.Module) -> Iterator[None]:
    # What torch would do to them must not be done to what is on the meta device.
    parameters = module._parameters
    module.__dict__["_parameters"] = {}
    try:
        yield
    finally:
        module.__dict__["_parameters"] = parameters


def _kind(module: nn.Module) -> type[nn.Module]:
    return cast("type[nn.Module]", type(module).__mro__[2])


def _owner(module: nn.Module) -> Owner:
    return cast(Owner, module.__dict__[_OWNER][0])


def _unit_of(module: nn.Module) -> Unit | None:
    found = module.__dict__.get(_OWNER)
    return None if found is None else cast("Unit | None", found[1])
