"""Masks: which weights are kept, by parameter name, and their packed bits."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from sparseflow.masks.arguments import unknown


class Masks(Mapping[str, Tensor]):
    """An immutable mapping from parameter name to a bool tensor, True = kept.

    Holds the given tensors without a copy; whoever made them must not write to them afterwards. Raises
    TypeError for a value that is not a bool tensor. Equality is by names and content, whatever the device.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            _check_mask(name, mask)
        self._masks = dict(masks)

    @classmethod
    def ones(cls, shapes: Mapping[str, Sequence[int]], device: torch.device | str | None = None) -> "Masks":
        """Returns masks that keep every weight of the given shapes."""
        return cls({n: torch.ones(tuple(s), dtype=torch.bool, device=device) for n, s in shapes.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        if self.keys() != other.keys():
            return False
        return all(_same(mask, other[name]) for name, mask in self.items())

    # Equal masks would need equal hashes, and hashing reads every bit: use `digest` where a key is wanted.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        rows = [("parameter", "shape", "kept", "density")]
        for name, kept in self.kept.items():
            shape = "×".join(str(size) for size in self[name].shape)
            rows.append((name, shape, f"{kept:,}", f"{self.densities[name]:.4%}"))
        rows.append(("total", f"{self.total:,}", f"{self.nnz:,}", f"{self.density:.4%}"))
        return _table(rows)

    @property
    def kept(self) -> dict[str, int]:
        """The number of kept weights of each parameter."""
        return {name: int(mask.count_nonzero()) for name, mask in self.items()}

    @property
    def nnz(self) -> int:
        """The number of kept weights."""
        return sum(self.kept.values())

    @property
    def total(self) -> int:
        """The number of weights, kept or pruned."""
        return sum(mask.numel() for mask in self.values())

    @property
    def density(self) -> float:
        """The fraction of all weights that is kept; 1 where there are none."""
        return self.nnz / self.total if self.total else 1.0

    @property
    def densities(self) -> dict[str, float]:
        """The fraction kept of each parameter; 1 for an empty one."""
        return {name: kept / self[name].numel() if self[name].numel() else 1.0 for name, kept in self.kept.items()}

    @property
    def digest(self) -> str:
        """The sha256 (hex) over (name, shape, packed bits) in sorted name order, whatever the device."""
        digest = hashlib.sha256()
        for name in sorted(self):
            digest.update(json.dumps([name, list(self[name].shape)]).encode())
            digest.update(pack_bits(self[name]).cpu().numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "Masks":
        """Returns these masks on `device`; tensors that are there already are shared."""
        return Masks({name: mask.to(device) for name, mask in self.items()})

    def issubset(self, other: Mapping[str, Tensor]) -> bool:
        """Returns whether `other` keeps every weight kept here; ValueError where names or shapes differ."""
        if self.keys() != other.keys():
            raise ValueError(
                f"expected masks of the same parameters; only here: {sorted(self.keys() - other.keys())}, "
                f"only there: {sorted(other.keys() - self.keys())}"
            )
        self.check({name: mask.shape for name, mask in other.items()})
        return not any(bool((mask & ~other[name].to(mask.device)).any()) for name, mask in self.items())

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raises ValueError for a name that `shapes` lacks (with the nearest match) and for a wrong shape."""
        for name, mask in self.items():
            if name not in shapes:
                raise ValueError(unknown("parameter", name, shapes))
            if tuple(mask.shape) != tuple(shapes[name]):
                raise ValueError(
                    f"mask of {name!r}: expected shape {tuple(shapes[name])}, got {tuple(mask.shape)}; "
                    "make the mask from the same model"
                )


def pack_bits(mask: Tensor) -> Tensor:
    """Returns the bits of a bool tensor, eight a byte: uint8, on the device of `mask`.

    Row-major, the first element in the lowest bit of the first byte, the last byte filled up with zeros:
    `numpy.packbits(mask, bitorder="little")`.
    """
    _check_mask("the mask", mask)
    bits = np.packbits(mask.detach().cpu().numpy(), axis=None, bitorder="little")
    return torch.from_numpy(bits).to(mask.device)


def unpack_bits(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns the bool tensor of `shape` that `pack_bits` packed, on the device of `bits`.

    Raises TypeError for another dtype than uint8, ValueError for a wrong number of bytes and for a pad bit
    that is set.
    """
    if bits.dtype != torch.uint8:
        raise TypeError(f"packed bits: expected dtype torch.uint8, got {bits.dtype}")
    count = prod(shape)
    expected = (count + 7) // 8
    if bits.ndim != 1 or bits.numel() != expected:
        raise ValueError(
            f"packed bits of shape {tuple(shape)}: expected {expected} bytes in one dimension, "
            f"got a tensor of shape {tuple(bits.shape)}"
        )
    packed = bits.detach().cpu().numpy()
    if count % 8 and packed[-1] >> (count % 8):
        raise ValueError(
            f"packed bits of shape {tuple(shape)}: expected the last {8 - count % 8} pad bits to be zero, "
            f"got a last byte of {int(packed[-1]):#04x}; the mask was packed for another shape or is damaged"
        )
    flat = np.unpackbits(packed, count=count, bitorder="little").view(np.bool_)
    return torch.from_numpy(flat).reshape(tuple(shape)).to(bits.device)


def _check_mask(name: str, mask: object) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask of {name!r}: expected a bool tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask of {name!r}: expected dtype torch.bool, got {mask.dtype}; pass `mask != 0`")


def _same(mask: Tensor, other: object) -> bool:
    return isinstance(other, Tensor) and other.dtype == mask.dtype and torch.equal(mask, other.to(mask.device))


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
