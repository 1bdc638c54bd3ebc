"""A state with its masks as the tensors of a file, and back.

The parts of a masked tensor NAME are `NAME.sp.values`, its kept values in row-major order, and the parts of
its mask.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from sparseflow.files.container import DTYPE_NAMES, DTYPES, Entry, StoredTensors
from sparseflow.files.encoding import decode_mask, encode_mask, mask_parts, smallest_encoding
from sparseflow.files.schema import Masked
from sparseflow.files.validate import Place, Rule, name_fault, shape_fault

Format = Literal["dense", "compact"]

_PARTS = ("values", "bitmask", "indptr", "cols")


def pack(
    state: Mapping[str, Tensor], masks: Mapping[str, Tensor], form: Format
) -> tuple[dict[str, Tensor], dict[str, Masked]]:
    """Returns the CPU tensors to store, and what to record of the masked ones.

    Raises ValueError that names the tensor for anything that `load` would refuse, and for a nonzero pruned
    weight.
    """
    stored: dict[str, Tensor] = {}
    masked: dict[str, Masked] = {}
    for name, tensor in state.items():
        if fault := storing_fault(name, tensor):
            raise ValueError(f"cannot save '{name}': {fault}")
        tensor = tensor.detach().cpu()
        if name not in masks:
            stored[name] = tensor
            continue
        parts, masked[name] = _pack_masked(name, tensor, masks[name].detach().cpu(), form)
        stored |= parts
    return stored, masked


def unpack(tensors: StoredTensors, name: str, record: Masked) -> tuple[Tensor, Tensor]:
    """Returns (dense tensor, mask) of one masked tensor, after all its content is checked.

    The file's entries must have passed `check_parts`.
    """
    place = tensors.place.at(name)
    if record.encoding == "zeros":
        dense = tensors.read(name)
        place.expect(Rule.NNZ, "a number of nonzero weights of", record.nnz - record.kept_zeros, _nonzero(dense))
        # A kept -0.0 is among the zeros that a dense file loses; what is pruned is +0.0 in memory too.
        return dense.masked_fill_(dense == 0, 0.0), dense != 0
    wanted = mask_parts(record.encoding, record.shape, record.nnz)
    parts = {part: tensors.read(part_name(name, part)) for part in wanted}
    mask = decode_mask(parts, record.shape, record.nnz, place)
    values_Z = tensors.read(part_name(name, "values"))
    place.expect(Rule.NNZ, "a number of nonzero values of", record.nnz - record.kept_zeros, _nonzero(values_Z))
    dense = torch.zeros(record.shape, dtype=values_Z.dtype)
    return dense.masked_scatter_(mask, values_Z), mask


def check_parts(entries: Mapping[str, Entry], masked: Mapping[str, Masked], form: Format, place: Place) -> None:
    """Raises SparseFormatError unless the file has just the parts of `masked`, with dtypes and shapes."""
    owned: set[str] = set()
    for name, record in masked.items():
        if fault := (_reserved(name) or shape_fault(record.shape)):
            place.at(name).fail(Rule.METADATA_SCHEMA, fault)
        if (record.encoding == "zeros") != (form == "dense"):
            place.at(name).fail(Rule.METADATA_SCHEMA, f"encoding '{record.encoding}' does not belong in a {form} file")
        if form == "dense":
            _check_part(name, None, tuple(record.shape), entries, place)
            continue
        if name in entries:
            place.at(name).fail(Rule.PARTS, "the tensor is there a second time, beside its parts")
        if record.encoding == "csr" and math.prod(record.shape) == 0:
            place.at(name).fail(Rule.PARTS, "expected encoding 'bitmask' for an empty tensor, got 'csr'")
        _check_part(part_name(name, "values"), None, (record.nnz,), entries, place)
        owned.add(part_name(name, "values"))
        for part, (dtype, shape) in mask_parts(record.encoding, record.shape, record.nnz).items():
            _check_part(part_name(name, part), dtype, shape, entries, place)
            owned.add(part_name(name, part))
    for name in entries:
        if is_part(name) and name not in owned:
            place.at(name).fail(Rule.PARTS, "a part that belongs to no masked tensor of the metadata")


def dense_bytes(entries: Mapping[str, Entry], masked: Mapping[str, Masked]) -> int:
    """The bytes that the state takes in memory, with one byte a masked weight for the masks. Exact."""
    total = sum(entry.nbytes for name, entry in entries.items() if not is_part(name))
    for name, record in masked.items():
        if record.encoding == "zeros":
            total += math.prod(record.shape)
        else:
            total += math.prod(record.shape) * (1 + DTYPES[entries[part_name(name, "values")].dtype].itemsize)
    return total


def storing_fault(name: str, tensor: Tensor) -> str | None:
    """Why a tensor cannot be stored under this name, or None."""
    if fault := _reserved(name) or shape_fault(list(tensor.shape)):
        return fault
    if tensor.dtype not in DTYPE_NAMES or tensor.layout != torch.strided or tensor.is_meta:
        expected = ", ".join(str(dtype) for dtype in DTYPE_NAMES)
        got = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
        return f"expected a strided tensor with data, of dtype {expected}; got {got}"
    if not _is_finite(tensor):
        return f"expected finite numbers, got NaN or infinity {int((~tensor.isfinite()).sum())} times"
    return None


def part_name(name: str, part: str) -> str:
    return f"{name}.sp.{part}"


def is_part(name: str) -> bool:
    return name.endswith(tuple(f".sp.{part}" for part in _PARTS))


def _pack_masked(name: str, tensor: Tensor, mask: Tensor, form: Format) -> tuple[dict[str, Tensor], Masked]:
    if not tensor.is_floating_point() or tensor.ndim == 0:
        raise ValueError(
            f"cannot save '{name}': expected a masked tensor of floating point with at least one dimension, "
            f"got {tensor.dtype} with {tensor.ndim}"
        )
    values_Z = tensor.masked_select(mask)
    nnz, nonzero = values_Z.numel(), _nonzero(values_Z)
    if lost := _nonzero(tensor) - nonzero:
        raise ValueError(
            f"cannot save '{name}': expected zeros where its mask has pruned, got {lost} nonzero weights; "
            "set them to zero first"
        )
    shape = list(tensor.shape)
    if form == "dense":
        record = Masked(encoding="zeros", shape=shape, nnz=nnz, kept_zeros=nnz - nonzero)
        return {name: tensor.masked_fill(~mask, 0.0)}, record
    encoding = smallest_encoding(shape, nnz)
    parts = {"values": values_Z, **encode_mask(mask, encoding)}
    for part in parts:
        if fault := name_fault(part_name(name, part)):
            raise ValueError(f"cannot save '{name}': with '.sp.{part}' after it, {fault}")
    record = Masked(encoding=encoding, shape=shape, nnz=nnz, kept_zeros=nnz - nonzero)
    return {part_name(name, part): tensor for part, tensor in parts.items()}, record


def _reserved(name: str) -> str | None:
    if is_part(name):
        return "names that end in '.sp.' and values, bitmask, indptr or cols belong to the file format"
    return name_fault(name)


def _check_part(
    name: str, dtype: str | None, shape: tuple[int, ...], entries: Mapping[str, Entry], place: Place
) -> None:
    place = place.at(name)
    if name not in entries:
        place.fail(Rule.PARTS, "expected this part of a masked tensor, the file has none")
    got = entries[name]
    # Values, and dense tensors, may have any floating-point dtype.
    if dtype is not None:
        place.expect(Rule.DTYPE, "the dtype", dtype, got.dtype)
    elif not DTYPES[got.dtype].is_floating_point:
        place.fail(Rule.DTYPE, f"expected floating point in a masked tensor, got {got.dtype}")
    rules = {"bitmask": Rule.BITMASK_LENGTH, "values": Rule.NNZ, "cols": Rule.NNZ, "indptr": Rule.INDPTR}
    place.expect(rules.get(name.rpartition(".sp.")[2], Rule.SHAPE), "the shape", shape, got.shape)


def _nonzero(tensor: Tensor) -> int:
    return int(tensor.count_nonzero())


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # One pass without a copy; NaN comes through as NaN.
    least, most = torch.aminmax(tensor.detach())
    return bool(least.isfinite() and most.isfinite())
