"""Does anything of the input still reach the output? Which layer cut the network, where nothing does?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from sparseflow.hardware.names import dense_name
from sparseflow.hardware.plan import densify
from sparseflow.hardware.sample import Sample, call, untouched
from sparseflow.hardware.streaming.execution import stream_of
from sparseflow.hardware.survey import survey
from sparseflow.hardware.weights import keep, weights_of


def broken_layer(model: nn.Module, masks: Mapping[str, Tensor], sample: Sample) -> str | None:
    """The name of the weight that cuts every path from the input to the output, or None.

    Paths run over kept weights, whatever their values, and over residual connections: a branch that is cut beside one
    that is not cuts nothing. Where several layers are cut one after the other, it is the last that is still reached.
    Runs a copy of the model on the sample once: NaN goes in, and where it is at the end, something has arrived. A
    streamed model, which has no copy, runs itself, and has its weights again afterwards.
    """
    with _dense_body(model) as network, _Tracer() as tracer, torch.no_grad():
        weights, sites = weights_of(network), survey(network).sites
        for name, site in sites.items():
            if name in masks:
                weights.write(name, masks[name].float())
                for module in site.modules:
                    tracer.attach(name, module)
        pruned = [module for name, site in sites.items() if name in masks for module in site.modules]
        for name in _biases(network, pruned):
            weights.write(name, torch.zeros_like(weights.read(name)))
        for module in network.modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                tracer.dye(module)
        # Fused attention kernels lose NaN on the way.
        with untouched(network), sdpa_kernel(SDPBackend.MATH):
            output = call(network, _dye(sample))
    return None if _reached(output) else tracer.broken


def check_connected(model: nn.Module, masks: Mapping[str, Tensor], sample: Sample) -> None:
    """ValueError that names the layer, where `masks` leave no path from the input to the output. See `broken_layer`."""
    broken = broken_layer(model, masks, sample)
    if broken is not None:
        mask = masks[broken]
        raise ValueError(
            f"the masks cut the network at {broken!r}, which keeps {int(mask.count_nonzero()):,} of {mask.numel():,} "
            "weights: none of them leads on from its inputs that are still reached; pass a floor, a higher density, "
            "another criterion or importance, or floor=0 to train it nevertheless"
        )


@contextmanager
def _dense_body(model: nn.Module) -> Iterator[nn.Module]:
    """What may be written to as one likes: a dense copy; or a streamed model, which gets back what it had."""
    if stream_of(model) is None:
        yield densify(copy.deepcopy(model))
        return
    before = keep(model, model.state_dict())
    try:
        yield densify(model)
    finally:
        model.load_state_dict(before)


def _biases(network: nn.Module, layers: Iterable[nn.Module]) -> list[str]:
    chosen = {id(module) for module in layers if module._parameters.get("bias") is not None}
    return [
        dense_name(f"{path}.bias" if path else "bias")
        for path, module in network.named_modules()
        if id(module) in chosen
    ]


class _Tracer:
    """Lets NaN pass through a layer only along its kept weights, and notes which layer was the last to stop it all.

    What it hangs on modules is gone at its end.
    """

    def __init__(self) -> None:
        self.broken: str | None = None
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> _Tracer:
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def attach(self, name: str, module: nn.Module) -> None:
        self._hooks += [
            module.register_forward_pre_hook(_seen),
            module.register_forward_hook(self._spread(name)),
        ]

    def dye(self, module: nn.Module) -> None:
        """Has everything come out of a module that reads numbers of words."""
        self._hooks.append(module.register_forward_hook(_dyed))

    def _spread(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            reached = output > 0
            if bool((inputs[0] > 0).any()) and not bool(reached.any()):
                self.broken = name
            return torch.where(reached, torch.nan, 0.0).to(output.dtype)

        return hook


def _seen(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].isnan().to(inputs[0].dtype), *inputs[1:])


def _dyed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return torch.full_like(output, torch.nan)


def _dye(sample: Sample) -> Sample:
    if isinstance(sample, Tensor):
        return _dye_tensor(sample)
    if isinstance(sample, Mapping):
        return {key: _dye_tensor(value) if isinstance(value, Tensor) else value for key, value in sample.items()}
    return tuple(_dye_tensor(value) if isinstance(value, Tensor) else value for value in sample)


def _dye_tensor(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor


def _reached(output: object) -> bool:
    if isinstance(output, Tensor):
        return output.is_floating_point() and bool(output.isnan().any())
    if isinstance(output, Mapping):
        return any(map(_reached, output.values()))
    return isinstance(output, (tuple, list)) and any(map(_reached, output))
