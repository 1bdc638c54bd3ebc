"""The HDF5 layout of cerebras_pytorch checkpoints, format 0.5: one dataset for each tensor of a nested state dict.

A tensor's key is its path in the dict, joined with dots. The file's attributes hold the tree of the dict, as torch's
pytree writes it, and what each key is; a dataset's attributes hold shape and dtype again. bfloat16 is stored as int16.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparseflow.atomic import atomic_write

if TYPE_CHECKING:
    pass

_VERSION = 0.5
# The release that the layout was read in.
_RELEASE = "2.10.0"
_MODEL = "model"
# Its number in the machine's own wire format, RtFxProto.ElementType.
_ELEMENT_TYPES = {
    torch.bool: 1,
    torch.int16: 3,
    torch.int32: 4,
    torch.int64: 5,
    torch.uint8: 6,
    torch.float16: 10,
    torch.float32: 11,
    torch.float64: 12,
    torch.bfloat16: 15,
}
_DTYPES = {str(dtype): dtype for dtype in _ELEMENT_TYPES}


def write_state(path: Path, state: Mapping[str, Tensor]) -> None:
    """Writes the tensors as the model of a checkpoint, whole or not at all. `ValueError` names what cannot be held."""
    _require_h5py()
    import h5py

    for name, tensor in state.items():
        if "/" in name or name in ("", "."):
            raise ValueError(f"the name {name!r} cannot be a key of an HDF5 file; rename the module")
        if tensor.dtype not in _ELEMENT_TYPES:
            raise ValueError(f"'{name}' is {tensor.dtype}; a checkpoint holds {', '.join(_DTYPES)}; convert it first")
    keys = {f"{_MODEL}.{name}": tensor for name, tensor in state.items()}
    # Our handle only keeps the place of the file that h5py writes.
    with atomic_write(path) as place, h5py.File(place.name, "w") as file:
        for key, tensor in keys.items():
            stored = tensor.contiguous().view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
            file.create_dataset(key, data=stored.numpy()).attrs.update(_metadata(tensor))
        file.attrs.update(_global(state, keys))


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of the model in a checkpoint. `ValueError` for everything that is not one."""
    _require_h5py()
    import h5py

    if not path.is_file():
        raise ValueError(f"{path}: expected a checkpoint, found none")
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path}: expected an HDF5 checkpoint, got another file")
    with h5py.File(path, "r") as file:
        version = file.attrs.get("__version__")
        if version != _VERSION:
            raise ValueError(f"{path}: expected a checkpoint of format {_VERSION}, got {version}")
        if not file.attrs.get("__SUCCESS__", False):
            raise ValueError(f"{path}: this checkpoint was not written to its end; take another")
        keys = [str(key) for key in file]
        names = [key for key in keys if key.startswith(f"{_MODEL}.")]
        if not names:
            raise ValueError(f"{path}: expected tensors under '{_MODEL}.', got {', '.join(keys[:5]) or 'none'}")
        return {key.removeprefix(f"{_MODEL}."): _read(file[key], f"{path}: '{key}'") for key in names}


def _read(dataset: object, place: str) -> Tensor:
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{place}: expected a tensor, got a {type(dataset).__name__}")
    about = dataset.attrs
    (name,) = about.get("dtypes", [None])
    if not about.get("__TORCH__", False) or name not in _DTYPES:
        raise ValueError(f"{place}: expected a tensor of {', '.join(_DTYPES)}, got {name}")
    try:
        array = dataset[...]
    except OSError as error:
        raise ValueError(f"{place}: cannot read it ({error}); if it is compressed, import hdf5plugin first") from None
    stored = torch.from_numpy(array)
    dtype = _DTYPES[name]
    if stored.dtype != (torch.int16 if dtype == torch.bfloat16 else dtype):
        raise ValueError(f"{place}: expected {dtype}, got an array of {array.dtype}")
    return stored.view(torch.bfloat16) if dtype == torch.bfloat16 else stored


def _metadata(tensor: Tensor) -> dict[str, Any]:
    return {
        "__TORCH__": True,
        "shapes": [tuple(tensor.shape)],
        "dtypes": [str(tensor.dtype)],
        "rtfx_dtypes": [_ELEMENT_TYPES[tensor.dtype]],
        "__TYPE__": "TorchTensorSerializer",
        "__NUMPY__": True,
        "compressed": False,
    }


def _global(state: Iterable[str], keys: Mapping[str, Tensor]) -> dict[str, Any]:
    names = list(state)
    unflattened = {_MODEL: dict.fromkeys(names, "*")}
    tree = _dict_spec([_MODEL], [_dict_spec(names, [_LEAF] * len(names))])
    return {
        "__spec__": _spec(unflattened, tree),
        "__version__": _VERSION,
        "__cstorch_version__": _RELEASE,
        **{f"{key}.__metadata__": _about(key, tensor) for key, tensor in keys.items()},
        "__SUCCESS__": True,
    }


def _about(key: str, tensor: Tensor) -> str:
    spec = json.loads(_spec({key: "*"}, _dict_spec([key], [_LEAF])))
    content = {"__spec__": spec, "__objects__": [key], f"{key}.__metadata__": _metadata(tensor)}
    return json.dumps(content, indent=4)


# torch.utils._pytree.treespec_dumps, protocol 1, of nested dicts: written out, since that module is torch's own.
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


def _dict_spec(names: list[str], children: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "builtins.dict", "context": json.dumps(names), "children_spec": children}


def _spec(unflattened: dict[str, Any], tree: dict[str, Any]) -> str:
    return json.dumps([unflattened, json.dumps([1, tree])], indent=4)


def _require_h5py() -> None:
    if importlib.util.find_spec("h5py") is None:
        raise ValueError("Cerebras checkpoints are HDF5, and h5py is not installed: pip install 'sparseflow[cerebras]'")
