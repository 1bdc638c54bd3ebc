"""What is behind a streamed model: it brings weights to the modules, and their gradients to the optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from sparseflow.hardware.bits import pack_bits, unpack_bits
from sparseflow.hardware.streaming.buffers import Buffers
from sparseflow.hardware.streaming.channel import Channel, Message, Phase
from sparseflow.hardware.streaming.classes import adopt_all, owner_of
from sparseflow.hardware.streaming.fetch import Sink, gate, through
from sparseflow.hardware.streaming.formats import Format
from sparseflow.hardware.streaming.forward import streamed_forward
from sparseflow.hardware.streaming.lying import Lying, Place
from sparseflow.hardware.streaming.model_buffers import load_buffers, save_buffers
from sparseflow.hardware.streaming.optimizer import StoreOptimizer, StreamedParameter
from sparseflow.hardware.streaming.scaling import LossScale
from sparseflow.hardware.streaming.store import Store
from sparseflow.hardware.streaming.units import Unit, Weight, check_mask


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
        # The messages of the last step.
        self.sent: list[Message] = []
        # What is sent to the first system reaches the others too, and is not counted again; nor are evaluations.
        self._echo = Channel(store, format.nbytes, rounded=rounded)
        numels = {unit.name: unit.numel for unit in units}
        # A thread reads a disk while the model computes; it cannot copy memory faster.
        self.buffers = Buffers(numels, device, self._fill, ahead=store.folder is not None)
        self._lying = Lying(store, self.channel, units, device)
        self._parameters = dict(parameters)
        self._names: dict[nn.Parameter, str] = {parameter: name for name, parameter in parameters.items()}
        self._nothing = torch.zeros((), device=device)
        self._running = self._backward = self._trains = False
        # How often weights were written by others than the optimizer.
        self._writes = 0
        self._pass = self._last = _Pass(self._weights_now)
        # By parameter: where the gradients of this pass come together.
        self._gates: dict[str, Tensor] = {}
        self._model = cast("Callable[[], nn.Module]", weakref.ref(model))
        adopt_all(model, self.units, parameters, self)
        self._listen()

    @property
    def names(self) -> list[str]:
        """Of all parameters, in the model's order."""
        return list(self._parameters)

    def name_of(self, parameter: nn.Parameter) -> str:
        """The first name of what this stands for in the model."""
        return self._names[parameter]

    def mask(self, name: str) -> Tensor | None:
        """True = kept; None for a parameter that no mask was given for."""
        return self.store.mask(name) if self.store.masked(name) else None

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """The dense parameter in `out`, or in memory of its own; zeros at the pruned places."""
        return self.store.read(name, out)

    def write(self, name: str, weight: Tensor) -> None:
        """Replaces the kept weights by those of a dense tensor; the optimizer state stays."""
        self.store.write(name, weight.detach().to("cpu", torch.float32))
        self._written()

    def remask(self, masks: Mapping[str, Tensor]) -> None:
        """New masks: weights kept by both stay, with their optimizer state; new ones begin at zero."""
        shapes = {name: self.store.shape(name) for name in self.names}
        for name, mask in masks.items():
            check_mask(name, mask, shapes, {})
        for name, mask in masks.items():
            self.store.remask(name, mask)
        self._written()

    def densify(self) -> None:
        """Takes all masks away; what was pruned is zero."""
        for name in self.names:
            if self.store.masked(name):
                self.store.remask(name, None)
        self._written()

    def renew(self, template: torch.optim.Optimizer) -> StoreOptimizer:
        """An optimizer with the settings of another one, which replaces the present one and begins anew."""
        scale = None if self.format.scale is None else LossScale(self.format.scale)
        self.optimizer = self.optimizer.renewed(template, scale)
        self._listen()
        return self.optimizer

    def commit(self, note: Mapping[str, JsonValue] | None = None) -> None:
        """Makes what the store holds now, with the model's buffers, what it will hold after a crash.

        note: JSON that goes with it, and is found again as `store.about["note"]`.
        """
        about = save_buffers(self._model(), self.store)
        about["note"] = dict(note or {})
        passes, scale = self.optimizer.passes, self.optimizer.scale_of_loss
        about["run"] = {"format": self.format.name, "systems": passes.systems, "micro_batches": passes.micro_batches}
        if scale is not None:
            about["loss_scale"] = dict(scale.state_dict())
        self.store.commit(about)

    def rollback(self) -> None:
        """Goes back to the last commit, as after a step that went wrong."""
        self.store.rollback()
        self.optimizer.forget()
        self.restore(self.store.about)
        self._written()

    def restore(self, about: Mapping[str, JsonValue]) -> None:
        """Takes the model's buffers from the store and what `commit` gave it as `about`, and the loss scale there."""
        load_buffers(self._model(), self.store, about)
        if self.optimizer.scale_of_loss is not None and (saved := about.get("loss_scale")):
            self.optimizer.scale_of_loss.load_state_dict(cast("dict[str, float]", saved))

    def close(self) -> None:
        """Lets another process open the store. What was not committed is lost."""
        self.buffers.close()
        self.store.close()

    # What the modules ask.

    def run(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The whole model's forward: a new pass, in which autograd keeps no weight."""
        if self._running:
            return forward(*args, **kwargs)
        # First, since it waits for what is still being read.
        self.buffers.begin("forward")
        self._trains, self._backward = torch.is_grad_enabled(), False
        self._echo.end_step()
        self._renew_pass(self._pass.ran)
        self._pass.ran, self._last = True, self._pass
        with streamed_forward(self, self.format, self.device), self._while_running():
            return forward(*args, **kwargs)

    def weight(self, unit: Unit, key: str) -> Tensor:
        """The dense weight; outside of the model's forward a copy, which autograd keeps."""
        weight = unit.weights[key]
        lies = self._running and weight.name in self._lying
        if not self._running:
            tensor = self.read(weight.name).to(self.device)
        elif lies:
            self.buffers.ask(unit.name)
            tensor = self._lying.weight(weight)
        else:
            tensor = weight.within(self.buffers.lend(unit.name))
        if not torch.is_grad_enabled() or not self.optimizer.trains(weight.name):
            return tensor
        gate = self._gate(weight, tensor if lies else None)
        # What was used outside of the forward has a gate without memory.
        return gate if lies and gate.data_ptr() == tensor.data_ptr() else through(gate, tensor)

    def saved(self, unit: Unit, key: str) -> dict[str, Tensor]:
        """As a SparseLayer saves it: kept values and packed mask; views of the store, only to be read."""
        name = unit.weights[key].name
        values = self.store.values(name)
        if not self.store.masked(name):
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

    def lent_at(self, address: int, offset: int) -> Callable[[], Tensor] | None:
        """What streams the weights in the buffer that begins there again, or in the parameter that lies there."""
        if place := self._lying.at(address):
            return partial(self._ask_again, self._pass, place)
        unit = self.buffers.unit_at(address)
        return None if unit is None else partial(self._lend_again, self._pass, unit, self.units[unit].at(offset).name)

    def _lend_again(self, source: _Pass, unit: str, name: str) -> Tensor:
        self._turn_back(source, name)
        return self.buffers.lend(unit)

    def _ask_again(self, source: _Pass, place: Place) -> Tensor:
        self._turn_back(source, place.name)
        self.buffers.ask(place.unit)
        return place.memory

    def _turn_back(self, source: _Pass, name: str) -> None:
        # A pass that has not given a gradient yet is one too many, which is said when it does.
        if source.number is not None and self.optimizer.updated(name):
            raise RuntimeError(
                f"backward asks for {name!r} after its gradient came and changed it: the forward uses it once more "
                "without a gradient (detach); clone it there, or pass sf.stream(..., spill=True), which keeps all "
                "gradients until step()"
            )
        if not self._backward:
            self.buffers.begin("backward")
            self._backward = True

    def _gate(self, weight: Weight, memory: Tensor | None) -> Tensor:
        if not self._running:
            self._renew_pass(self._pass.number is not None)
        name = weight.name
        if name not in self._gates:
            of = self._nothing.expand(weight.shape) if memory is None else memory
            self._gates[name] = gate(of, _sink(self, name, self._pass))
        return self._gates[name]

    def _renew_pass(self, over: bool) -> None:
        # What is used before a forward belongs to its pass, and so does what is used after it.
        if over or self._pass.weights != self._weights_now:
            self._pass, self._gates = _Pass(self._weights_now), {}

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
        passes, number = self.optimizer.passes, self._last.number
        system = passes.system(self.optimizer.passes_come if number is None else number)
        # The weights leave once for all systems, as the first one asks for them.
        channel = self._echo if system or not self._trains else self.channel
        phase: Phase = "backward" if self._backward else "forward"
        for weight in self.units[name].weights.values():
            if weight.name in self._lying:
                channel.lend_weights(weight.name, phase, passes.systems)
                continue
            out = weight.within(memory)
            if self.device.type == "cpu":
                channel.send_weights(weight.name, phase, out, passes.systems)
            else:
                out.copy_(channel.send_weights(weight.name, phase, torch.empty(weight.shape), passes.systems))

    @property
    def _weights_now(self) -> tuple[int, int]:
        return self.store.step, self._writes

    def _end_step(self) -> None:
        self.sent = self.channel.end_step()

    def _written(self) -> None:
        self._writes += 1
        self.buffers.clear()
        self._lying.forget()

    def _listen(self) -> None:
        self.optimizer.register_step_post_hook(lambda *_: self._end_step())

    @contextmanager
    def _while_running(self) -> Iterator[None]:
        self._running = True
        try:
            yield
        finally:
            self._running = False


def stream_of(model: nn.Module) -> Stream | None:
    """What is behind a streamed model, or behind one of its modules; None for any other."""
    found = owner_of(model)
    assert found is None or isinstance(found, Stream)
    return found


@dataclass(eq=False)
class _Pass:
    """A forward of the model and its backward. weights: which they were. number: in its step, from backward on."""

    weights: tuple[int, int]
    ran: bool = False
    number: int | None = None


def _sink(stream: Stream, name: str, source: _Pass) -> Sink:
    # Autograd's graph holds this, and the stream holds beginnings of that graph.
    weak = weakref.ref(stream)

    def sink(gradient: Tensor) -> None:
        found = weak()
        assert found is not None, "the model was there when this pass began"
        found._receive(name, source, gradient)

    return sink
