"""Exact masks from weights of which each rank holds slices: nothing is gathered but counts."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor

from sparseflow.masks.allocation import Allocation, Layer
from sparseflow.masks.arguments import choose
from sparseflow.masks.floors import Floor
from sparseflow.masks.keep import Amounts, keep_units
from sparseflow.masks.keys import check_dtype
from sparseflow.masks.masks import Masks, pack_bits, unpack_bits
from sparseflow.masks.pieces import Piece, Pieces, promote
from sparseflow.masks.slices import Layout, Slice, check_slices, lay_out
from sparseflow.ranks import ALONE, Ranks


def prune_slices(
    slices: Sequence[Slice],
    shapes: Mapping[str, Sequence[int]],
    *,
    masks: Sequence[Slice] | None = None,
    density: float | None = None,
    rate: float | None = None,
    criterion: Literal["magnitude"] = "magnitude",
    allocation: Allocation = "global",
    rates: Mapping[str, float] | None = None,
    floor: Floor | None = None,
    ranks: Ranks = ALONE,
) -> list[Slice]:
    """Returns the masks of the weights to keep, one slice for each of `slices`: those of `prune_tensors`, cut.

    Every rank calls it, with all its slices of all prunable weights, in any order; all slices together hold every
    weight once. shapes: of all whole parameters, the same on every rank; equal scores are pruned lowest index
    first, in this order. masks: what is kept so far, cut like `slices`; None: all. The other arguments, the exact
    counts and the errors are those of `prune_tensors`, and every rank raises the same error. The masks do not depend
    on how the weights are cut, nor on the number of ranks.

    Traffic, in bytes that each rank gives to collectives, for P parameters in S slices on all ranks: about
    40 · S + 16 · P and the histograms, which do not depend on the number of weights: 768 KiB for float32 (256 KiB
    for bfloat16 or float16, 1.75 MiB for float64) for a global threshold, and as much again for each further pass
    that floors cause; 7 KiB · P (3 KiB · P, 15 KiB · P) for the other allocations. Memory above the weights: the
    masks and one chunk.
    """
    amounts, survivors = ranks.each(
        lambda: (
            _checked(Amounts(density, rate, allocation, rates, floor), shapes, criterion),
            _matched(slices, shapes, masks),
        )
    )
    ranks.check_same("the arguments of prune_slices", _digest(shapes, amounts, masks is None))
    layout = lay_out(slices, shapes, ranks)
    with torch.no_grad():
        pieces = _pieces(slices, survivors, layout, ranks)
        sizes = {name: prod(shape) for name, shape in shapes.items()}
        kept = sizes if survivors is None else pieces.kept(list(shapes), dict(zip(layout.places, survivors)))
        layers = {name: Layer(tuple(shape), sizes[name], kept[name]) for name, shape in shapes.items()}
        units = keep_units(pieces, layers, amounts, criterion)
    return [Slice(part.name, part.start, units[place]) for part, place in zip(slices, layout.places, strict=True)]


def assemble(slices: Sequence[Slice], shapes: Mapping[str, Sequence[int]], ranks: Ranks = ALONE) -> Masks:
    """Returns the whole masks on every rank, on the CPU, from the slices of all ranks, which hold each weight once.

    Costs what `assemble_bits` does and one byte a weight on each rank: where only one rank wants them, or one
    parameter at a time, iterate over that.
    """
    bits = assemble_bits(slices, shapes, ranks)
    return Masks({name: unpack_bits(packed, shapes[name]) for name, packed in bits})


def assemble_bits(
    slices: Sequence[Slice], shapes: Mapping[str, Sequence[int]], ranks: Ranks = ALONE
) -> Iterator[tuple[str, Tensor]]:
    """Yields each parameter's name and packed bits (see `pack_bits`), on every rank, which all must iterate to the end.

    Traffic: each rank gives one bit a weight, rounded up to bytes, to a sum a parameter; 30 bytes a slice besides.
    Memory: the packed bits of one parameter. Raises the same error on every rank for slices that do not fit.
    """
    ranks.each(lambda: _check_masks(slices, shapes))
    lay_out(slices, shapes, ranks)
    for name, shape in shapes.items():
        whole = torch.zeros((prod(shape) + 7) // 8, dtype=torch.uint8)
        for part in slices:
            if part.name == name and part.values.numel():
                ahead = torch.zeros(part.start % 8, dtype=torch.bool)
                bits = pack_bits(torch.cat([ahead, part.values.cpu()]))
                # Slices can share a byte, but no bit: their sum is their union, here and over the ranks.
                whole[part.start // 8 : part.start // 8 + bits.numel()] += bits
        yield name, ranks.sum(whole)


def _checked(amounts: Amounts, shapes: Mapping[str, Sequence[int]], criterion: str) -> Amounts:
    choose("criterion for slices", criterion, {"magnitude": None})
    if not shapes:
        raise ValueError("shapes: expected at least one prunable parameter, got none")
    return amounts


def _digest(shapes: Mapping[str, Sequence[int]], amounts: Amounts, *more: object) -> str:
    told = repr(([(name, tuple(shape)) for name, shape in shapes.items()], amounts, more))
    return hashlib.sha256(told.encode()).hexdigest()


def _matched(
    slices: Sequence[Slice], shapes: Mapping[str, Sequence[int]], masks: Sequence[Slice] | None
) -> list[Tensor] | None:
    """Returns the previous mask of each slice; ValueError for wrong slices and where a mask is missing or too many."""
    check_slices(slices, shapes)
    for part in slices:
        check_dtype(part.name, part.values.dtype)
    if masks is None:
        return None
    by_place = {part.place: part.values for part in masks}
    missing = [part.place for part in slices if part.place not in by_place]
    if missing or len(masks) != len(slices):
        raise ValueError(
            f"masks: expected one slice for each of the {len(slices)} slices of weights, got {len(masks)}"
            + (", and none for {!r} from {:,} to {:,}".format(*missing[0]) if missing else "")
            + "; cut whole masks with cut(masks, slices)"
        )
    survivors = Masks({str(part.place): by_place[part.place] for part in slices})
    return [survivors[str(part.place)].to(part.values.device) for part in slices]


def _check_masks(slices: Sequence[Slice], shapes: Mapping[str, Sequence[int]]) -> None:
    check_slices(slices, shapes)
    for part in slices:
        Masks({part.name: part.values})


def _pieces(slices: Sequence[Slice], survivors: Sequence[Tensor] | None, layout: Layout, ranks: Ranks) -> Pieces:
    alive = [None] * len(slices) if survivors is None else survivors
    here = [
        Piece(part.name, place, part.values, own) for part, place, own in zip(slices, layout.places, alive, strict=True)
    ]
    return Pieces(here, layout.order, True, promote(layout.dtypes), ranks)
