"""sf.stream: a model whose weights and optimizer state live in a store, and visit its modules one at a time."""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.hardware.bits import pack_bits, unpack_bits
from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.optimizers import check_optimizer
from sparseflow.hardware.product import autocasts
from sparseflow.hardware.streaming.buffers import Buffers
from sparseflow.hardware.streaming.channel import Channel, Phase
from sparseflow.hardware.streaming.classes import adopt, owner_of
from sparseflow.hardware.streaming.fetch import Sink, forgetting, gate, through
from sparseflow.hardware.streaming.formats import Format, RoundedProducts, format_of
from sparseflow.hardware.streaming.optimizer import StoreOptimizer, StreamedParameter, streamed_parameter
from sparseflow.hardware.streaming.scaling import LossScale
from sparseflow.hardware.streaming.store import Store
from sparseflow.hardware.streaming.store_manifest import NAME as MANIFEST
from sparseflow.hardware.streaming.store_parameter import Entry
from sparseflow.hardware.streaming.systems import Passes
from sparseflow.hardware.streaming.units import Unit, every_name, first_names, initial_weights, units_of
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
    kept = _opened(store, units, masks, keys, every_name(model), initialise)
    stand_ins = {p: (names[id(p)], streamed_parameter(p)) for p in model.parameters()}
    scale = None if numbers.scale is None else LossScale(numbers.scale)
    made = StoreOptimizer(optimizer, stand_ins, kept, passes, spill or passes.count > 1, scale)
    Stream(model, kept, units, made, dict(stand_ins.values()), numbers, place, strict)
    return model, made


def stream_of(model: nn.Module) -> Stream | None:
    """What is behind a streamed model, or behind one of its modules; None for any other."""
    found = owner_of(model)
    assert found is None or isinstance(found, Stream)
    return found


class Stream:
    """What a streamed model reads from and writes to. `names`: of its parameters, each by its first name.

    All that is read or written goes one parameter at a time, so that no more than that is in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        store: Store,
        units: list[Unit],
        optimizer: StoreOptimizer,
        parameters: Mapping[str, StreamedParameter],
        format: Format,
        device: torch.device,
        strict: bool,
    ) -> None:
        self.store, self.optimizer, self.format, self.device = store, optimizer, format, device
        self.units = {unit.name: unit for unit in units}
        rounded = None if format.name == "fp32" else format.round
        self.channel = Channel(store, format.nbytes, rounded=rounded, strict=strict)
        # What is sent to the first system reaches the others too: it is not counted again.
        self._echo = Channel(store, format.nbytes, rounded=rounded)
        self.buffers = Buffers(max((unit.numel for unit in units), default=1), device, self._fill)
        self._parameters = dict(parameters)
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self._running = self._backward = False
        # How often weights were written by others than the optimizer.
        self._writes = 0
        self._pass = _Pass(self._weights_now)
        # By parameter: where the gradients of this pass come together.
        self._gates: dict[str, Tensor] = {}
        self._adopt(model)

    @property
    def names(self) -> list[str]:
        """Of all parameters, in the model's order."""
        return list(self._parameters)

    def mask(self, name: str) -> Tensor | None:
        """True = kept; None for a parameter that no mask was given for."""
        return self.store.mask(name) if self._masked(name) else None

    def read(self, name: str) -> Tensor:
        """The dense parameter in memory of its own, zeros at the pruned places."""
        return self.store.read(name)

    def write(self, name: str, weight: Tensor) -> None:
        """Replaces the kept weights by those of a dense tensor; the optimizer state stays."""
        self.store.write(name, weight.detach().to("cpu", torch.float32))
        self._written()

    def remask(self, masks: Mapping[str, Tensor]) -> None:
        """New masks: weights kept by both stay, with their optimizer state; new ones begin at zero."""
        for name, mask in masks.items():
            _check_mask(name, mask, {name: self.store.shape(name) for name in self.names}, {})
            self.store.remask(name, mask)
        self._written()

    # What the modules ask.

    def run(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The whole model's forward: a new pass, in which autograd keeps no weight."""
        if self._running:
            return forward(*args, **kwargs)
        _refuse_autocast(self.device)
        self._pass, self._gates, self._backward = _Pass(self._weights_now), {}, False
        self.buffers.begin("forward")
        with ExitStack() as stack:
            stack.enter_context(_slow_attention())
            stack.enter_context(forgetting(self))
            if self.format.name != "fp32":
                stack.enter_context(RoundedProducts(self.format))
            stack.enter_context(self._while_running())
            return forward(*args, **kwargs)

    def weight(self, unit: Unit, key: str) -> Tensor:
        """The dense weight; outside of the model's forward a copy, which autograd keeps."""
        weight = unit.weights[key]
        if self._running:
            tensor = weight.within(self.buffers.lend(unit.name))
        else:
            tensor = self.read(weight.name).to(self.device)
        if not torch.is_grad_enabled() or not self._parameters[weight.name].requires_grad:
            return tensor
        return through(self._gate(weight.name, weight.shape), tensor)

    def saved(self, unit: Unit, key: str) -> dict[str, Tensor]:
        """As a SparseLayer saves it: kept values and packed mask; views of the store, only to be read."""
        name = unit.weights[key].name
        values = self.store.values(name)
        if not self._masked(name):
            return {"": values.view(self.store.shape(name))}
        return {"_values": values, "_mask": pack_bits(self.store.mask(name))}

    def load(self, unit: Unit, key: str, found: Mapping[str, Tensor]) -> None:
        """What `saved` gave, or a dense weight, of which the mask here keeps its places."""
        weight = unit.weights[key]
        if "" in found:
            if tuple(found[""].shape) != weight.shape:
                raise ValueError(f"expected shape {weight.shape}, got {tuple(found[''].shape)}")
            self.write(weight.name, found[""])
            return
        mask = unpack_bits(found["_mask"].cpu(), weight.shape, f"{weight.name} as a mask")
        kept, count = found["_values"].detach().to("cpu", torch.float32), int(mask.sum())
        if kept.shape != (count,):
            raise ValueError(f"expected {count} kept weights by its mask, got {tuple(kept.shape)}")
        if not torch.equal(mask, self.store.mask(weight.name)):
            self.store.remask(weight.name, mask)
        self.store.put(weight.name, kept)
        self._written()

    # What autograd asks.

    def unit_at(self, address: int) -> str | None:
        """The unit in the buffer that begins there."""
        return self.buffers.unit_at(address)

    def again(self, unit: str) -> Tensor:
        """The unit's weights, for backward."""
        if not self._backward:
            self._backward = True
            self.buffers.begin("backward")
        return self.buffers.lend(unit)

    def _gate(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._gates:
            self._gates[name] = gate(self._anchor, shape, _sink(self, name, self._pass))
        return self._gates[name]

    def _receive(self, name: str, source: _Pass, gradient: Tensor) -> None:
        if source.weights != self._weights_now:
            raise RuntimeError(
                f"backward of a forward whose weights are gone: {name!r} was updated or written since; run the model "
                "again before this backward"
            )
        if source.number is None:
            source.number = self.optimizer.passes_come
        gradient_Z = self.channel.send_gradient(name, "backward", self.store.gather(name, gradient.to("cpu")))
        self.optimizer.receive(name, source.number, gradient_Z)

    def _fill(self, name: str, memory: Tensor) -> None:
        passes, number = self.optimizer.passes, self._pass.number
        system = passes.system(self.optimizer.passes_come if number is None else number)
        # The weights leave once for all systems, as the first one asks for them.
        channel = self._echo if system else self.channel
        phase: Phase = "backward" if self._backward else "forward"
        for weight in self.units[name].weights.values():
            out = weight.within(memory)
            if self.device.type == "cpu":
                channel.send_weights(weight.name, phase, out, passes.systems)
            else:
                out.copy_(channel.send_weights(weight.name, phase, torch.empty(weight.shape), passes.systems))

    @property
    def _weights_now(self) -> tuple[int, int]:
        return self.store.step, self._writes

    def _written(self) -> None:
        self._writes += 1
        self.buffers.clear()

    def _masked(self, name: str) -> bool:
        return self.store.parameter(name).record.index_sha256 is not None

    @contextmanager
    def _while_running(self) -> Iterator[None]:
        self._running = True
        try:
            yield
        finally:
            self._running = False

    def _adopt(self, model: nn.Module) -> None:
        by_module = {id(unit.module): unit for unit in self.units.values()}
        for module in list(model.modules()):
            unit = by_module.get(id(module))
            for key, weight in {} if unit is None else unit.weights.items():
                module._parameters[key] = self._parameters[weight.name]
            for key, buffer in module._buffers.items():
                module._buffers[key] = None if buffer is None else buffer.to(self.device)
            adopt(module, unit, self, root=module is model)


@dataclass(eq=False)
class _Pass:
    """A forward of the model and its backward. weights: which they were. number: in its step, from backward on."""

    weights: tuple[int, int]
    number: int | None = None


def _sink(stream: Stream, name: str, source: _Pass) -> Sink:
    # Autograd's graph holds this, and the stream holds beginnings of that graph.
    weak = weakref.ref(stream)

    def sink(gradient: Tensor) -> None:
        found = weak()
        assert found is not None, "the model was there when this pass began"
        found._receive(name, source, gradient)

    return sink


@contextmanager
def _slow_attention() -> Iterator[None]:
    # The fast path of torch's encoder layer reads the weights of six modules before it uses the first.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _refuse_autocast(device: torch.device) -> None:
    if autocasts(device.type):
        raise ValueError(
            "a streamed model cannot run under autocast, which keeps a copy of each weight for backward; pass "
            "sf.stream(..., format='bf16') or 'fp16' instead"
        )


def _refuse_streamed(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if owner_of(module) is not None:
            raise ValueError(f"{path or 'the model'} is streamed already; use stream_of(model)")
        if isinstance(module, SparseLayer):
            raise ValueError(
                f"{path!r} is a SparseLayer, and a streamed model is made of torch's own layers: densify the model, and "
                "pass the masks to sf.stream"
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
    folder: Path | str | None,
    units: list[Unit],
    masks: Mapping[str, Tensor] | None,
    keys: Mapping[str, tuple[str, ...]],
    aliases: Mapping[str, str],
    initialise: Callable[[nn.Module], None] | None,
) -> Store:
    shapes = {weight.name: weight.shape for unit in units for weight in unit.weights.values()}
    for name, mask in (masks or {}).items():
        _check_mask(name, mask, shapes, aliases)
    path = None if folder is None else Path(folder)
    if path is not None and (path / MANIFEST).exists():
        return _same(Store.open(path, shapes), masks or {})
    entries = (
        Entry(name, shapes[name], (masks or {}).get(name), weight.to("cpu"), keys.get(name, ()))
        for name, weight in initial_weights(units, initialise)
    )
    return Store.create(path, entries)


def _same(store: Store, masks: Mapping[str, Tensor]) -> Store:
    for name, mask in masks.items():
        if not torch.equal(store.mask(name), mask.cpu()):
            store.close()
            raise ValueError(
                f"the store has another mask for {name!r}, of {store.nnz(name)} kept weights where this one keeps "
                f"{int(mask.sum())}; leave masks= out to go on with it, or take another folder"
            )
    return store


def _check_mask(
    name: str, mask: Tensor, shapes: Mapping[str, tuple[int, ...]], aliases: Mapping[str, str]
) -> None:
    if name not in shapes:
        tied = aliases.get(name)
        near = difflib.get_close_matches(name, shapes, n=1)
        hint = f"it is tied to {tied!r}; give that one the mask" if tied else f"nearest: {near}" if near else ""
        raise ValueError(f"mask {name!r} names no parameter of the model; {hint}")
    if tuple(mask.shape) != shapes[name] or mask.dtype != torch.bool:
        raise ValueError(
            f"mask {name!r}: expected a bool tensor (True = kept) of shape {shapes[name]}, got {mask.dtype} of shape "
            f"{tuple(mask.shape)}"
        )
