"""sf.stream: a model whose weights and optimizer state live in a store, and visit its modules one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.optimizers import check_optimizer
from sparseflow.hardware.streaming.classes import owner_of
from sparseflow.hardware.streaming.execution import Stream
from sparseflow.hardware.streaming.execution import stream_of as stream_of
from sparseflow.hardware.streaming.formats import Format, format_of
from sparseflow.hardware.streaming.model_buffers import float_buffers
from sparseflow.hardware.streaming.optimizer import StoreOptimizer, streamed_parameter
from sparseflow.hardware.streaming.scaling import LossScale
from sparseflow.hardware.streaming.store import Store
from sparseflow.hardware.streaming.store_manifest import NAME as MANIFEST
from sparseflow.hardware.streaming.store_parameter import Entry
from sparseflow.hardware.streaming.systems import Passes
from sparseflow.hardware.streaming.units import Unit, check_mask, every_name, first_names, initial_weights, units_of
from sparseflow.hardware.streaming.updates import rule_of


def stream(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    store: Path | str | None,
    masks: Mapping[str, Tensor] | None = None,
    *,
    format: str = "fp32",
    systems: int = 1,
    micro_batches: int = 1,
    spill: bool = False,
    device: torch.device | str | None = None,
    buffer_limit: int | None = None,
    initialise: Callable[[nn.Module], None] | None = None,
    strict: bool = False,
    anew: bool = False,
) -> tuple[nn.Module, StoreOptimizer]:
    """The same model, whose weights live in `store`, and an optimizer that updates them there.

    store: a folder, or None for memory. A folder that holds a store of this model is gone on with: its weights, masks
    and optimizer state count, and not the model's. Otherwise one is made with the model's weights, of which `masks`
    (dense name → bool tensor, True = kept) says what is kept. Parameters on the meta device are made one module at a
    time, by `initialise` or by the module's own reset_parameters, so that the model may be larger than memory.

    optimizer: SGD, Adam or AdamW of this model's parameters, not stepped yet; build schedulers on the one returned.
    format: of operands, "fp32", "fp16", "bf16" or "cb16"; weights in the store and accumulation stay float32.
    systems, micro_batches: a step has systems × micro_batches backward passes; the loss of each counts in full. spill:
    keep gradients until `step`, as more than one pass, clipping and formats with a loss scale need.
    device: where the model computes; that of its parameters, or the CPU. buffer_limit: bytes that one module's weights
    may take. strict: assert that nothing but kept weights crosses the wire.
    anew: begin with the model's weights and `masks` though the folder may hold a store, which they replace by the next
    commit.

    The model's parameters are meta tensors afterwards; `module.weight` is made at each access and only to be read.
    `ValueError` for masks, stores and optimizers that do not fit, and for a module that `buffer_limit` cannot hold.
    """
    _refuse_streamed(model)
    units, numbers = units_of(model), format_of(format)
    passes = Passes(systems, micro_batches)
    _check_units(units, buffer_limit)
    _check_spill(passes, numbers, spill)
    place = torch.device(device) if device is not None else _device_of(model)
    names = first_names(model)
    keys = _state_keys(optimizer, model, names)
    kept = _opened(model, store, units, masks, keys, initialise, anew)
    stand_ins = {p: (names[id(p)], streamed_parameter(p)) for p in model.parameters()}
    scale = None if numbers.scale is None else LossScale(numbers.scale)
    made = StoreOptimizer(optimizer, stand_ins, kept, passes, spill or passes.count > 1, scale)
    made_of = Stream(model, kept, units, made, dict(stand_ins.values()), numbers, place, strict)
    made_of.restore({} if anew else kept.about)
    return model, made


def _refuse_streamed(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if owner_of(module) is not None:
            raise ValueError(f"{path or 'the model'} is streamed already; use stream_of(model)")
        if isinstance(module, SparseLayer):
            raise ValueError(
                f"{path!r} is a SparseLayer, and a streamed model is made of torch's own layers: densify the model, "
                "and pass the masks to sf.stream"
            )


def _check_units(units: list[Unit], limit: int | None) -> None:
    largest = max(units, key=lambda unit: unit.nbytes)
    if limit is not None and largest.nbytes > limit:
        raise ValueError(
            f"{largest.name!r} ({type(largest.module).__name__}) needs a buffer of {largest.nbytes} bytes, and "
            f"buffer_limit is {limit}: a limit of {largest.nbytes} fits, with two buffers {2 * largest.nbytes} in all"
        )


def _check_spill(passes: Passes, format: Format, spill: bool) -> None:
    if format.scale is not None and not spill and passes.count == 1:
        raise ValueError(
            f"format {format.name!r} scales the loss, and must see all gradients of a step before it applies the "
            "first: pass spill=True, which keeps them on the way"
        )


def _device_of(model: nn.Module) -> torch.device:
    devices = {parameter.device for parameter in model.parameters() if not parameter.is_meta}
    if len(devices) > 1:
        raise ValueError(f"expected a model on one device, got {', '.join(sorted(map(str, devices)))}; pass device=")
    return devices.pop() if devices else torch.device("cpu")


def _state_keys(
    optimizer: torch.optim.Optimizer, model: nn.Module, names: Mapping[int, str]
) -> dict[str, tuple[str, ...]]:
    """Name → the optimizer state to keep, of each parameter that is trained."""
    check_optimizer(optimizer, model)
    if optimizer.state:
        raise ValueError(
            "expected an optimizer that has not stepped yet: its state would be lost; build it anew, stream, and load "
            "what it had with load_state_dict"
        )
    found: dict[str, tuple[str, ...]] = {}
    for group in optimizer.param_groups:
        keys = rule_of(optimizer, group).keys
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise ValueError("the optimizer holds a parameter that is not of this model; give it the model's alone")
            if parameter.requires_grad:
                found[names[id(parameter)]] = keys
    return found


def _opened(
    model: nn.Module,
    folder: Path | str | None,
    units: list[Unit],
    masks: Mapping[str, Tensor] | None,
    keys: Mapping[str, tuple[str, ...]],
    initialise: Callable[[nn.Module], None] | None,
    anew: bool,
) -> Store:
    shapes = {weight.name: weight.shape for unit in units for weight in unit.weights.values()}
    aliases, masks = every_name(model), masks or {}
    for name, mask in masks.items():
        check_mask(name, mask, shapes, aliases)

    def entries() -> Iterator[Entry]:
        for name, weight in initial_weights(units, initialise):
            yield Entry(name, shapes[name], masks.get(name), weight.to("cpu"), keys.get(name, ()))
        for name, buffer in float_buffers(model).items():
            yield Entry(name, tuple(buffer.shape), None, buffer.to("cpu"))

    path = None if folder is None else Path(folder)
    _check_made(model, units)
    if path is not None and (path / MANIFEST).exists():
        buffers = {name: tuple(buffer.shape) for name, buffer in float_buffers(model).items()}
        found = Store.open(path, {**shapes, **buffers})
        _check_keys(found, keys)
        return _replaced(found, entries()) if anew else _same(found, masks)
    return Store.create(path, entries())


def _check_made(model: nn.Module, units: list[Unit]) -> None:
    # Buffers of modules with parameters are made with those, or come from the store.
    made = {id(unit.module) for unit in units}
    for path, module in model.named_modules():
        for key, buffer in module._buffers.items():
            known = id(module) in made and key not in module._non_persistent_buffers_set
            if buffer is not None and buffer.is_meta and not known:
                raise ValueError(
                    f"the buffer {key!r} of {path!r} is on the meta device, and nothing says what is in it; make that "
                    "module on the CPU"
                )


def _replaced(store: Store, entries: Iterable[Entry]) -> Store:
    """The store with other content, as it was made with."""
    try:
        for entry in entries:
            if store.masked(entry.name) or entry.mask is not None:
                store.remask(entry.name, entry.mask)
            weight = entry.weight() if callable(entry.weight) else entry.weight
            assert weight is not None
            store.write(entry.name, weight)
            if store.steps(entry.name):
                for key in entry.keys:
                    store.put(entry.name, torch.zeros(store.nnz(entry.name)), key)
                store.set_steps(entry.name, 0)
    except BaseException:
        store.close()
        raise
    return store


def _check_keys(store: Store, keys: Mapping[str, tuple[str, ...]]) -> None:
    for name, wanted in keys.items():
        if store.keys(name) != wanted:
            store.close()
            raise ValueError(
                f"the store keeps the optimizer state {store.keys(name)} of {name!r}, and this optimizer needs "
                f"{wanted}; pass the optimizer that it was made for, or take another folder"
            )


def _same(store: Store, masks: Mapping[str, Tensor]) -> Store:
    for name, mask in masks.items():
        if not torch.equal(store.mask(name), mask.cpu()):
            store.close()
            raise ValueError(
                f"the store has another mask for {name!r}, of {store.nnz(name)} kept weights where this one keeps "
                f"{int(mask.sum())}; leave masks= out to go on with it, or take another folder"
            )
    return store
