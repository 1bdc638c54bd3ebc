"""Runs of a model on a sample, to see what each layer gets; nothing of them remains."""

from __future__ import annotations

import contextlib
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from sparseflow.hardware.flow import Flow, Watch
from sparseflow.hardware.product import autocast_dtype
from sparseflow.hardware.workload import Kind

Sample = Tensor | tuple[object, ...] | Mapping[str, object]


@dataclass
class Seen:
    """What a layer got, summed over its calls: rows, the last image size, and whether its input needs a gradient.

    `flow` says where its output went.
    """

    rows: int = 0
    image: tuple[int, int] | None = None
    needs_dx: bool = False
    dtype: torch.dtype = torch.float32
    flow: Flow = field(default_factory=Flow)


def observe(model: nn.Module, sample: Sample, layers: Mapping[str, tuple[Kind, list[nn.Module]]]) -> dict[str, Seen]:
    """Runs the model in eval mode, under the caller's autocast; RNGs, buffers and modes are restored bit for bit.

    `sample` is a tensor, tuple or dict as the model's forward takes it. `layers` gives the kind and all
    modules of each weight. A layer that is not reached keeps 0 rows. Where an output could be handed on in another
    form, the model runs once more in train mode, and flows hold what both runs allow: nothing, if that run fails.
    """
    seen = {name: Seen() for name in layers}
    # Before our own hooks: it looks who else has some.
    watch = Watch(layers)
    hooks = [
        module.register_forward_pre_hook(_watch(seen[name], kind), with_kwargs=True)
        for name, (kind, modules) in layers.items()
        for module in modules
    ]
    try:
        flows = _run(model, sample, watch, training=False)
    finally:
        for hook in hooks:
            hook.remove()
    if any(flow.feeds or flow.relus for flow in flows.values()):
        trained = _run_in_training(model, sample, layers)
        flows = {name: flow & trained.get(name, Flow()) for name, flow in flows.items()}
    for name, flow in flows.items():
        seen[name].flow = flow
    return seen


def _run(model: nn.Module, sample: Sample, watch: Watch, training: bool) -> dict[str, Flow]:
    with untouched(model, training), torch.enable_grad(), _eagerly():
        for module in model.modules():
            # It may stand on either side of a ReLU and keeps strides. Trained, it would hide who reads its input.
            if type(module) is nn.Dropout and not module.inplace:
                module.training = False
        with watch.hooks(model), watch:
            output = call(model, sample)
        return watch.flows(output)


def _run_in_training(
    model: nn.Module, sample: Sample, layers: Mapping[str, tuple[Kind, list[nn.Module]]]
) -> dict[str, Flow]:
    try:
        return _run(model, sample, Watch(layers), training=True)
    except Exception:
        # The user's code may raise anything: a norm wants more rows, a detector wants targets. The model may
        # be for evaluation alone, so that it is no error, and without having seen training nothing is fused.
        return {}


def _eagerly() -> contextlib.AbstractContextManager[object]:
    # A compiled model shows neither its modules nor its operations. As long as nobody has compiled anything,
    # torch._dynamo need not be imported, which takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def _watch(seen: Seen, kind: Kind) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        (x,) = (*inputs, *named.values())
        seen.dtype = autocast_dtype(x)
        seen.needs_dx |= x.requires_grad
        if kind == "linear":
            seen.rows += math.prod(x.shape[:-1])
        else:
            seen.rows += x.shape[0] if x.dim() == 4 else 1
            seen.image = (x.shape[-2], x.shape[-1])

    return hook


def call(model: nn.Module, sample: Sample) -> object:
    """The model's output for a tensor, a tuple of arguments, or a dict of named ones."""
    if isinstance(sample, Tensor):
        return model(sample)
    if isinstance(sample, Mapping):
        return model(**sample)
    if isinstance(sample, (tuple, list)):
        return model(*sample)
    raise TypeError(
        f"sample: expected a tensor, tuple or mapping as the model's forward takes it, got {type(sample).__name__}"
    )


@contextlib.contextmanager
def untouched(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Eval or train mode inside; afterwards modes, buffers and RNGs of torch, numpy and Python are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    # A forward may write into a buffer or put another tensor in its place.
    registered = [(module, dict(module._buffers)) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            model.train(training)
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module, before_run in registered:
            module._buffers.clear()
            module._buffers.update(before_run)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
