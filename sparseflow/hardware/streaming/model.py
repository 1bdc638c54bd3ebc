"""sf.stream: a model whose weights and optimizer state live in a store, and visit its modules one at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.hardware.bits import pack_bits, unpack_bits
from sparseflow.hardware.product import autocasts
from sparseflow.hardware.streaming.buffers import Buffers
from sparseflow.hardware.streaming.channel import Channel
from sparseflow.hardware.streaming.classes import adopt, owner_of
from sparseflow.hardware.streaming.fetch import Sink, forgetting, gate, through
from sparseflow.hardware.streaming.formats import Format, RoundedProducts, format_of
from sparseflow.hardware.streaming.optimizer import StoreOptimizer, StreamedParameter, streamed_parameter
from sparseflow.hardware.streaming.scaling import LossScale
from sparseflow.hardware.streaming.store import Store
from sparseflow.hardware.streaming.store_parameter import Entry
from sparseflow.hardware.streaming.systems import Passes, SpilledInMemory
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
    spilled = SpilledInMemory() if spill or passes.count > 1 else None
    made = StoreOptimizer(optimizer, stand_ins, kept, passes, spilled, scale)
    Stream(model, kept, units, made, dict(stand_ins.values()), numbers, place, strict)
    return model, made


def stream_of(model: nn.Module) -> Stream | None:
    """What is behind a streamed model, or behind one of its modules; None for any other."""
    found = owner_of(model)
    assert found is None or isinstance(found, Stream)
    return found
