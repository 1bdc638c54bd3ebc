"""State dicts of other tools, which keep a mask beside each weight that they pruned.

| tool | weight | mask |
|---|---|---|
| torch.nn.utils.prune | `fc.weight_orig` | `fc.weight_mask` |
| cerebras.pytorch.sparse | `fc.weight` | `fc.weight_mask` |
| ModelOpt | `fc.weight` | `fc._weight_mask` |

What the network computes with is the weight times its mask, and that is what is read.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseflow.files import Weights, load
from sparseflow.hardware.names import unwrapped
from sparseflow.integrations import cerebras
from sparseflow.masks.masks import Masks

# Where trainers put the state dict among what else they keep.
_INSIDE = ("state_dict", "model_state_dict", "model")


def load_masked(path: str | os.PathLike[str], zeros: bool = False) -> Weights:
    """The weights and masks in somebody else's checkpoint, on the CPU.

    Reads safetensors, Cerebras' HDF5 (.mdl, .h5), and what `torch.save` wrote, of which only tensors are unpickled.
    `zeros`: as `read_masked`. `ValueError` that says what is wrong with the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected a checkpoint, found no such file")
    try:
        if path.suffix in (".mdl", ".h5", ".hdf5"):
            found = cerebras.load(path)
            return found if found.masks else read_masked(found.state, zeros)
        state = load(path) if path.suffix == ".safetensors" else _unpickled(path)
        # Our own compact files have their masks in them.
        if isinstance(state, Weights):
            return state if state.masks else read_masked(state.state, zeros)
        if not isinstance(state, Mapping):
            raise ValueError(f"expected a state dict or weights, got a {type(state).__name__.lower()}")
        return read_masked(_inside(state), zeros)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from None


def read_masked(state: Mapping[str, Tensor], zeros: bool = False) -> Weights:
    """The weights of a state dict, zero where pruned, under their dense names, and their masks.

    `zeros`: weights of two dimensions or more that have exact zeros and no mask count as pruned there. `ValueError`
    where there is no mask at all, or one that is not of zeros and ones.
    """
    weights, masks = dict[str, Tensor](), dict[str, Tensor]()
    # What is called a mask and has another shape is something else.
    of_mask = {
        mask: name
        for name, tensor in state.items()
        for mask in _mask_names(name)
        if mask in state and state[mask].shape == tensor.shape
    }
    masked = set(of_mask.values())
    for name, tensor in state.items():
        if name not in of_mask:
            weights[_dense_name(name, name in masked)] = tensor.detach().cpu()
    for mask, name in of_mask.items():
        dense = _dense_name(name, True)
        masks[dense] = _bools(mask, state[mask])
        weights[dense] = weights[dense].masked_fill(~masks[dense], 0)
    if zeros:
        for name, tensor in weights.items():
            if name not in masks and tensor.dim() >= 2 and bool((tensor == 0).any()):
                masks[name] = tensor != 0
    if not masks:
        raise ValueError(
            "found no masks: expected fc.weight_orig with fc.weight_mask (torch.nn.utils.prune), or fc.weight with "
            f"fc.weight_mask or fc._weight_mask; {'and no weight has exact zeros' if zeros else _ASK}"
        )
    return Weights(weights, Masks(masks), {"from": "masked state"})


_ASK = "where zeros stand for pruned weights, say so: --zeros, or zeros=True"


def _dense_name(name: str, masked: bool) -> str:
    return unwrapped(name.removesuffix("_orig") if masked else name)


def _mask_names(name: str) -> tuple[str, ...]:
    """Where a mask of that weight would be."""
    path, dot, key = name.rpartition(".")
    if key.endswith("_orig"):
        return (f"{path}{dot}{key.removesuffix('_orig')}_mask",)
    return (f"{name}_mask", f"{path}{dot}_{key}_mask")


def _bools(name: str, mask: Tensor) -> Tensor:
    mask = mask.detach().cpu()
    kept = mask.bool()
    if not torch.equal(kept.to(mask.dtype), mask):
        raise ValueError(f"{name}: expected a mask of zeros and ones, got values between; round it first")
    return kept


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"expected safetensors or a state dict as torch.save writes it, without other objects: {reason}"
        ) from None


def _inside(found: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The state dict among what a trainer keeps."""
    for key in _INSIDE:
        if isinstance(found.get(key), Mapping):
            return _inside(found[key])
    tensors = {str(name): one for name, one in found.items() if isinstance(one, Tensor)}
    if not tensors:
        raise ValueError(f"expected tensors, or a state dict under {', '.join(_INSIDE)}; got keys {list(found)[:5]}")
    return tensors
