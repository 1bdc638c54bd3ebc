"""A way to the real machine: masked models in Cerebras' checkpoint layout, and the sparsity block of its configs.

A checkpoint holds dense weights, zeros at pruned places, and beside each masked one its mask, `<param>_mask`. Beside it
lies a YAML file with the block `sparsity:` that gives the same masks to the trainer: static, one group for each
sparsity. Layout and block are those of cerebras_pytorch 2.10; nothing of it is needed here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import yaml
from torch import Tensor, nn

from sparseflow.atomic import atomic_write
from sparseflow.files import Ticket, Weights
from sparseflow.integrations.cerebras_config import Rule, densities, read_sparsity, sparsity_block
from sparseflow.integrations.cerebras_h5 import read_state, write_state
from sparseflow.masks.masks import Masks

__all__ = ["Rule", "densities", "export", "load", "read_sparsity", "sparsity_block"]

_SUFFIX = "_mask"


def export(
    what: Ticket | Weights | nn.Module, path: str | os.PathLike[str], *, masks: Mapping[str, Tensor] | None = None
) -> Path:
    """Writes a checkpoint to `path` and the sparsity block to the same name with `.yaml`, which it returns.

    Of a ticket, the state to train from. `masks` is for a dense model; the others have their own. Each file is there
    whole or not at all. `ValueError` for a nonzero weight at a pruned place, for a name or dtype that the layout cannot
    hold, for a path that is the block's own, and where h5py is not installed.
    """
    target = Path(path)
    block = target.with_suffix(".yaml")
    if block == target:
        raise ValueError(f"{target}: expected another suffix, such as .mdl: the sparsity block goes to .yaml")
    state, kept = _contents(what, masks)
    for name, mask in kept.items():
        if f"{name}{_SUFFIX}" in state:
            raise ValueError(f"'{name}{_SUFFIX}' is a tensor of the model; the mask of '{name}' needs that name")
        lost = int(state[name].masked_fill(mask.to(state[name].device), 0).count_nonzero())
        if lost:
            raise ValueError(f"{lost} nonzero weights of '{name}' lie where its mask has pruned; prune the model first")
    masked = {name: tensor.masked_fill(~kept[name], 0) if name in kept else tensor for name, tensor in state.items()}
    write_state(target, {**masked, **{f"{name}{_SUFFIX}": mask for name, mask in kept.items()}})
    text = yaml.safe_dump({"sparsity": sparsity_block(kept)}, sort_keys=False)
    with atomic_write(block) as file:
        file.write(text.encode())
    return block


def load(path: str | os.PathLike[str]) -> Weights:
    """The weights and masks of the model in a checkpoint, on the CPU; optimizer and all else is left aside.

    `ValueError` that says what is wrong with the file.
    """
    state = read_state(Path(path))
    masks = {name: state.pop(f"{name}{_SUFFIX}").bool() for name in list(state) if f"{name}{_SUFFIX}" in state}
    return Weights(state, Masks(masks), {"from": "cerebras"})


def _contents(
    what: Ticket | Weights | nn.Module, masks: Mapping[str, Tensor] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State and masks on the CPU, a mask under every name that its weight has."""
    if isinstance(what, nn.Module):
        # Backends come in with the layers; whoever exports a ticket needs none of them.
        from sparseflow.hardware.model import current_masks, dense_state, masks_by_every_name

        state = dense_state(what)
        own = current_masks(what) if masks is None else Masks(masks)
        kept = masks_by_every_name(what, own)
        Masks(own).check({name: tensor.shape for name, tensor in state.items()})
    elif not isinstance(what, Ticket | Weights):
        raise TypeError(f"expected a Ticket, Weights or torch.nn.Module to export, got {type(what).__name__}")
    elif masks is not None:
        raise TypeError("expected masks with a dense model only; a Ticket and Weights hold their own")
    else:
        state, kept = dict(what.rewind if isinstance(what, Ticket) else what.state), dict(what.masks)
    return (
        {name: tensor.detach().cpu() for name, tensor in state.items()},
        {name: mask.cpu() for name, mask in kept.items()},
    )
