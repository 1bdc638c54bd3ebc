"""Masks kept under DeepSpeed: a dense engine goes on training with its pruned weights at exactly zero.

DeepSpeed keeps a weight twice, the fp32 master and what the forward reads, and writing one does not change the other
before the next step; a moment that is not zeroed brings a pruned weight back (Measured: SGD with momentum and AdamW
revive all of them within five steps when only gradients are masked). So all of them are written, and gradients are
masked from then on: their norm, which clipping looks at, is then of the survivors alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparseflow.hardware.optimizers import mixes_elements
from sparseflow.ranks import ALONE, Ranks
from sparseflow_launchers.zero_slices import Engine, Shards, named_parameters, shards_of


@dataclass(frozen=True)
class HeldMasks:
    """Masks that hold in an engine until `release`."""

    engine: Engine
    masks: Mapping[str, Tensor]
    hooks: list[RemovableHandle]

    def write(self) -> None:
        """Zeroes the pruned weights in master, forward copy and moments; needed again after weights were loaded."""
        shards = shards_of(self.engine)
        for name, parameter in named_parameters(self.engine):
            if name in self.masks:
                _write(shards, parameter, self.masks[name].reshape(-1))

    def revived(self, ranks: Ranks = ALONE) -> dict[str, int]:
        """Dense name → how many pruned weights are not zero, in master, forward copy and moments; only where any is.

        Counts what each of the `ranks` holds, so that what several ranks hold counts several times.
        """
        shards = shards_of(self.engine)
        counts = {}
        for name, parameter in named_parameters(self.engine):
            if name in self.masks:
                counts[name] = _nonzero(shards, parameter, self.masks[name].reshape(-1))
        total = {name: sum(one[name] for one in ranks.gather(counts)) for name in counts}
        return {name: count for name, count in total.items() if count}

    def release(self) -> None:
        """Lets go: from now on pruned weights train like others."""
        for hook in self.hooks:
            hook.remove()


def hold_masks(engine: Engine, masks: Mapping[str, Tensor]) -> HeldMasks:
    """Writes masks into a live engine of any stage, and keeps pruned weights at zero in the steps that follow.

    masks: dense name → bool tensor of the parameter's shape, the same on every rank; every rank calls this. Raises
    ValueError for a name that the engine does not have or another shape, and where the optimizer mixes elements.
    """
    shards, parameters = shards_of(engine), dict(named_parameters(engine))
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(f"masks: the engine has no parameter {name!r}; it has {', '.join(parameters)}")
        shape = shards.shape(parameters[name])
        if tuple(mask.shape) != shape:
            raise ValueError(f"mask of {name!r}: expected shape {shape}, got {tuple(mask.shape)}")
    if mixes_elements(engine.optimizer):
        raise ValueError(
            f"{type(engine.basic_optimizer).__name__} combines elements of a weight, so that pruned ones move; train "
            "with an element-wise optimizer such as AdamW"
        )
    hooks = [_hook(parameters[name], mask) for name, mask in masks.items()]
    held = HeldMasks(engine, masks, hooks)
    held.write()
    return held


def _hook(parameter: nn.Parameter, mask: Tensor) -> RemovableHandle:
    handle: RemovableHandle = parameter.register_hook(_Masking(mask))  # type: ignore[no-untyped-call]
    return handle


@dataclass(frozen=True, eq=False)
class _Masking:
    mask: Tensor

    def __call__(self, gradient: Tensor) -> Tensor:
        # Not a product: a gradient that is not finite at a pruned place must not become NaN.
        return gradient.masked_fill(~self.mask.to(gradient.device), 0.0)


def _write(shards: Shards, parameter: nn.Parameter, mask: Tensor) -> None:
    for start, copy in shards.forward_copies(parameter):
        copy.masked_fill_(_pruned(mask, start, copy), 0.0)
    if shards.read(parameter) is None:
        return
    for key in (None, *shards.moments(parameter)):
        part = shards.read(parameter, key)
        assert part is not None
        start, flat = part
        shards.write(parameter, flat.masked_fill(_pruned(mask, start, flat), 0.0), key)


def _nonzero(shards: Shards, parameter: nn.Parameter, mask: Tensor) -> int:
    parts = shards.forward_copies(parameter)
    if shards.read(parameter) is not None:
        parts += [part for key in (None, *shards.moments(parameter)) if (part := shards.read(parameter, key))]
    return sum(int(flat[_pruned(mask, start, flat)].count_nonzero()) for start, flat in parts)


def _pruned(mask: Tensor, start: int, flat: Tensor) -> Tensor:
    return ~mask[start : start + len(flat)].to(flat.device)
