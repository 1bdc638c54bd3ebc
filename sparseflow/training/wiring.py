"""Wiring: which inputs of which layers hold which output channel of another.

Found by dye, not by reading code: half of a layer's outputs are made NaN, as one bit of a channel's number says, and
the model runs; what is NaN further on has come from there. Twice log2 runs tell the channel of every input, or that
it holds a mixture. Layers that can be pruned stop the dye, BatchNorm and everything without weights pass it on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from sparseflow.hardware.plan import densify
from sparseflow.hardware.sample import Sample, call, untouched
from sparseflow.hardware.survey import Site, survey
from sparseflow.masks.channel import Channel

_OUTPUT = "the model's output"


@dataclass(frozen=True)
class Wiring:
    """Of each layer whose channels may go: readers → channel of each input; BatchNorms → channel of each feature.

    `refused`: why the channels of other layers must stay.
    """

    feeds: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    norms: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def channels(model: nn.Module, sample: Sample) -> Channel:
    """The pattern of whole channels for a model: `sf.prune(model, 0.5, pattern=sf.channels(model, sample))`.

    Its `refused` says which layers keep all channels, and why: those that make the model's output, whose outputs are
    added to others' (a residual connection) or mixed before the next layer, and grouped convolutions. Runs a copy of
    the model about 2 log2(channels) times a layer. `ValueError` where no layer's channels may go.
    """
    wiring = trace(model, sample)
    if not wiring.feeds:
        raise ValueError(f"channels: no layer has channels that may go: {wiring.refused}")
    return Channel(wiring.feeds, wiring.refused)


def trace(model: nn.Module, sample: Sample) -> Wiring:
    """The wiring of a dense or sparse model."""
    network = densify(copy.deepcopy(model)).requires_grad_(False)
    found = Wiring()
    for name in survey(network).sites:
        reason = _Trace(network, name, sample).into(found)
        if reason is not None:
            found.refused[name] = reason
    return found


class _Trace:
    """The outputs of one layer, followed to where they are read."""

    def __init__(self, network: nn.Module, name: str, sample: Sample) -> None:
        self.network, self.name, self.sample = network, name, sample
        self.sites = survey(network).sites
        self.site = self.sites[name]
        self.paths = {module: path for path, module in network.named_modules()}

    def into(self, found: Wiring) -> str | None:
        """Adds the layer to the wiring, or returns why its channels must stay."""
        if len(self.site.modules) > 1 or len(self.site.places) > 1:
            return "it is used in several places"
        if _groups(self.site) > 1:
            return "it is a grouped convolution"
        others = self._run(None)
        bits = max(1, (_width(self.site) - 1).bit_length())
        runs = [(self._run((bit, 0)), self._run((bit, 1))) for bit in range(bits)]
        feeds: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        for place in dict.fromkeys(place for pair in runs for run in pair for place in run):
            channels = _decode([(clear.get(place), dyed.get(place)) for clear, dyed in runs])
            if channels is None or place == _OUTPUT:
                return f"its channels are mixed before {place}" if place != _OUTPUT else f"it reaches {_OUTPUT}"
            if place in others and bool((others[place] & (channels >= 0)).any()):
                return f"at {place}, other layers reach the same inputs, as by a residual connection or attention"
            kind, _, where = place.partition(" ")
            if kind == "layer" and _groups(self.sites[where]) > 1:
                return f"it is read by {where}, a grouped convolution"
            if kind == "module":
                return f"it is read by {where}, which has weights by channel of its own"
            (feeds if kind == "layer" else norms)[where] = channels
        if not feeds or self.name in feeds:
            return "it reads its own output" if feeds else "no layer reads it"
        found.feeds[self.name], found.norms[self.name] = feeds, norms
        return None

    def _run(self, half: tuple[int, int] | None) -> dict[str, Tensor]:
        """Place → which of its inputs are dyed.

        `half` (bit, value): the channels with that bit are dyed. None: everything is dyed but this layer's channels.
        """
        seen: dict[str, Tensor] = {}
        # Fused attention kernels lose NaN on the way.
        with self._hooks(half, seen), untouched(self.network), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            output = call(self.network, _dyed(self.sample) if half is None else self.sample)
        for tensor in _tensors(output):
            if bool(tensor.isnan().any()):
                seen[_OUTPUT] = torch.ones(1, dtype=torch.bool)
        return seen

    @contextmanager
    def _hooks(self, half: tuple[int, int] | None, seen: dict[str, Tensor]) -> Iterator[None]:
        handles: list[RemovableHandle] = []
        owners = {module: name for name, site in self.sites.items() for module in site.modules}
        for module in self.network.modules():
            if module in owners:
                name = owners[module]
                handles.append(module.register_forward_pre_hook(_reader(f"layer {name}", seen, stop=True)))
                if name == self.name or half is None:
                    handles.append(module.register_forward_hook(_dyer(self.site, half, name == self.name)))
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                handles.append(module.register_forward_pre_hook(_reader(f"norm {self.paths[module]}", seen)))
            elif any(True for _ in module.parameters(recurse=False)) and not list(module.children()):
                handles.append(module.register_forward_pre_hook(_reader(f"module {self.paths[module]}", seen)))
                if half is None:
                    handles.append(module.register_forward_hook(_all_dyed))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _reader(place: str, seen: dict[str, Tensor], stop: bool = False) -> Callable[..., tuple[Tensor, ...] | None]:
    """Notes which inputs of a module are dyed, and where it stops the dye, takes it out."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        x = inputs[0]
        if not x.is_floating_point():
            return None
        side = 1 if isinstance(module, nn.Conv2d | nn.modules.batchnorm._BatchNorm) and x.dim() > 1 else -1
        dyed = x.isnan().movedim(side, 0).flatten(1).any(1)
        if bool(dyed.any()):
            seen[place] = dyed | seen[place] if place in seen else dyed
        return (x.nan_to_num(0.0), *inputs[1:]) if stop else None

    return hook


def _all_dyed(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> object:
    return torch.full_like(output, torch.nan) if isinstance(output, Tensor) else output


def _dyer(site: Site, half: tuple[int, int] | None, own: bool) -> Callable[..., Tensor]:
    """Makes outputs NaN: of this layer's the half that is asked for; else all of another layer's, none of its own."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if half is None:
            return torch.zeros_like(output) if own else torch.full_like(output, torch.nan)
        bit, value = half
        side = 1 if isinstance(module, nn.Conv2d) else -1
        chosen = (torch.arange(output.shape[side], device=output.device) >> bit) & 1 == value
        dyed = torch.zeros_like(output).movedim(side, -1).masked_fill(chosen, torch.nan)
        return dyed.movedim(-1, side)

    return hook


def _decode(runs: list[tuple[Tensor | None, Tensor | None]]) -> Tensor | None:
    """The channel of each input from the runs of each bit, -1 for none; None where one holds a mixture."""
    like = next(dyed for pair in runs for dyed in pair if dyed is not None)
    numbers = torch.zeros(len(like), dtype=torch.int64)
    reached = torch.zeros(len(like), dtype=torch.bool)
    for bit, (clear, dyed) in enumerate(runs):
        by_0, by_1 = (torch.zeros_like(reached) if one is None else one.cpu() for one in (clear, dyed))
        if bool((by_0 & by_1).any()):
            return None
        reached |= by_0 | by_1
        numbers += by_1.long() << bit
    return torch.where(reached, numbers, -1)


def _width(site: Site) -> int:
    return site.shape[1] if site.transposed else site.shape[0]


def _groups(site: Site) -> int:
    return site.module.groups if isinstance(site.module, nn.Conv2d) else 1


def _dyed(sample: Sample) -> Sample:
    if isinstance(sample, Tensor):
        return torch.full_like(sample, torch.nan) if sample.is_floating_point() else sample
    if isinstance(sample, Mapping):
        return {key: _dyed(value) if isinstance(value, Tensor) else value for key, value in sample.items()}
    return tuple(_dyed(value) if isinstance(value, Tensor) else value for value in sample)


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor) and output.is_floating_point():
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)
