"""A mask as the tensors that a file stores for it: one bit a place, or the columns of each row (CSR).

R rows, C columns, Z kept weights: a tensor of shape (R, ...) counts as (R, C), one of a single dimension as
(1, C).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from sparseflow.files.validate import Place, Rule
from sparseflow.masks.masks import pack_bits, unpack_bits

Encoding = Literal["bitmask", "csr"]
# A part's dtype, as safetensors names it, and its shape.
Part = tuple[str, tuple[int, ...]]

_COLUMNS_U16 = 2**16
_MAX_I32 = 2**31 - 1


def smallest_encoding(shape: Sequence[int], nnz: int) -> Encoding:
    """Returns the encoding of fewer bytes; the bitmask if they are equal."""
    if math.prod(shape) == 0 or _rows_columns(shape)[1] > _MAX_I32:
        return "bitmask"
    sizes = {encoding: _nbytes(mask_parts(encoding, shape, nnz)) for encoding in ("bitmask", "csr")}
    return "csr" if sizes["csr"] < sizes["bitmask"] else "bitmask"


def mask_parts(encoding: str, shape: Sequence[int], nnz: int) -> dict[str, Part]:
    """Returns the parts of a mask of this shape and number of kept weights, with their dtypes and shapes."""
    if encoding == "bitmask":
        return {"bitmask": ("U8", (-(-math.prod(shape) // 8),))}
    assert encoding == "csr"
    rows, columns = _rows_columns(shape)
    return {
        "indptr": ("I32" if nnz <= _MAX_I32 else "I64", (rows + 1,)),
        "cols": ("U16" if columns <= _COLUMNS_U16 else "I32", (nnz,)),
    }


def encode_mask(mask: Tensor, encoding: Encoding) -> dict[str, Tensor]:
    """Returns the parts of a bool CPU tensor."""
    if encoding == "bitmask":
        return {"bitmask": pack_bits(mask)}
    rows, columns = _rows_columns(mask.shape)
    mask_RC = mask.reshape(rows, columns)
    indptr = torch.zeros(rows + 1, dtype=torch.int64)
    torch.cumsum(mask_RC.sum(1), 0, out=indptr[1:])
    cols_Z = mask_RC.nonzero()[:, 1]
    return {
        "indptr": indptr.to(torch.int32 if len(cols_Z) <= _MAX_I32 else torch.int64),
        "cols": cols_Z.to(torch.uint16 if columns <= _COLUMNS_U16 else torch.int32),
    }


def decode_mask(parts: Mapping[str, Tensor], shape: Sequence[int], nnz: int, place: Place) -> Tensor:
    """Returns the bool tensor, after its parts' content is checked.

    The parts' dtypes and shapes must be those of `mask_parts`. Raises SparseFormatError where pad bits are
    set, the count is not `nnz`, the row pointers fall or the columns of a row do not rise strictly within it.
    """
    if "bitmask" in parts:
        return _decode_bitmask(parts["bitmask"], shape, nnz, place)
    return _decode_csr(parts["indptr"].long(), parts["cols"].long(), shape, nnz, place)


def _decode_bitmask(bits: Tensor, shape: Sequence[int], nnz: int, place: Place) -> Tensor:
    used = math.prod(shape) % 8
    if used and int(bits[-1]) >> used:
        place.fail(
            Rule.PAD_BITS,
            f"expected the last {8 - used} bits of the bitmask to be 0, got {int(bits[-1]):#010b}",
        )
    mask = unpack_bits(bits, tuple(shape))
    place.expect(Rule.NNZ, "a number of set bits of", nnz, int(mask.count_nonzero()))
    return mask


def _decode_csr(indptr: Tensor, cols_Z: Tensor, shape: Sequence[int], nnz: int, place: Place) -> Tensor:
    rows, columns = _rows_columns(shape)
    place.expect(Rule.INDPTR, "a first row pointer of", 0, int(indptr[0]))
    place.expect(Rule.INDPTR, "a last row pointer of", nnz, int(indptr[-1]))
    kept_R = indptr.diff()
    if int(kept_R.min()) < 0 or int(kept_R.max()) > columns:
        place.fail(Rule.INDPTR, f"expected row pointers that rise by 0 to {columns}")
    if nnz and (int(cols_Z.min()) < 0 or int(cols_Z.max()) >= columns):
        place.fail(
            Rule.COLS,
            f"expected columns from 0 to {columns - 1}, got {int(cols_Z.min())} to {int(cols_Z.max())}",
        )
    flat_Z = torch.repeat_interleave(torch.arange(rows), kept_R) * columns + cols_Z
    # Columns are within their rows, so the flat places rise strictly just where the columns of each row do.
    if nnz and int(flat_Z.diff(prepend=flat_Z.new_tensor([-1])).min()) <= 0:
        place.fail(Rule.COLS, "expected the columns of each row to rise strictly")
    mask = torch.zeros(math.prod(shape), dtype=torch.bool)
    mask[flat_Z] = True
    return mask.reshape(tuple(shape))


def _rows_columns(shape: Sequence[int]) -> tuple[int, int]:
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape) // rows if rows else 0


def _nbytes(parts: Mapping[str, Part]) -> int:
    width = {"U8": 1, "U16": 2, "I32": 4, "I64": 8}
    return sum(width[dtype] * math.prod(shape) for dtype, shape in parts.values())
