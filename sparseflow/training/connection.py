"""Does anything of the input still reach the output? Which layer cut the network, where nothing does?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparseflow.hardware.plan import densify
from sparseflow.hardware.sample import Sample, call, untouched
from sparseflow.hardware.survey import survey


def broken_layer(model: nn.Module, masks: Mapping[str, Tensor], sample: Sample) -> str | None:
    """The name of the weight that cuts every path from the input to the output, or None.

    Paths run over kept weights, whatever their values, and over residual connections: a branch that is cut beside one
    that is not cuts nothing. Where several layers are cut one after the other, it is the last that is still reached.
    Runs a copy of the model on the sample once: NaN goes in, and where it is at the end, something has arrived.
    """
    network = densify(copy.deepcopy(model)).requires_grad_(False)
    tracer = _Tracer()
    for name, site in survey(network).sites.items():
        if name in masks:
            mask = masks[name].to(site.weight.device)
            with torch.no_grad():
                site.weight.copy_(mask)
            for module in site.modules:
                tracer.attach(name, module)
    for module in network.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.register_forward_hook(_dyed)
    # Fused attention kernels lose NaN on the way.
    with untouched(network), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
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


class _Tracer:
    """Lets NaN pass through a layer only along its kept weights, and notes which layer was the last to stop it all."""

    def __init__(self) -> None:
        self.broken: str | None = None

    def attach(self, name: str, module: nn.Module) -> None:
        bias = module._parameters.get("bias")
        if bias is not None:
            with torch.no_grad():
                bias.zero_()
        module.register_forward_pre_hook(_seen)
        module.register_forward_hook(self._spread(name))

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
