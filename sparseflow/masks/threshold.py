"""The exact threshold: which scores are the lowest k, by radix over the bits of their keys.

Counting the digits of the keys from the top finds the k-th lowest, without a sort, a concatenation or a copy beyond
one chunk: in one pass (16-bit floats), two (float32) or four (float64) for one threshold over all layers, in twice
as many, of digits of 8 bits, for thresholds of many layers at once. Only counts pass between processes. They are
integers, so the result does not depend on threads, processes or the order of sums. Equal scores are pruned lowest
global index first, as by a stable sort.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow.masks.keys import Keys
from sparseflow.masks.pieces import Piece, Pieces

# Bits of a digit: few passes for one group, small histograms for many.
_WIDE = 16
_NARROW = 8


@dataclass(frozen=True)
class Group:
    """Layers that share a threshold, under which `drop` of their survivors lie."""

    layers: Sequence[str]
    drop: int


@dataclass(frozen=True)
class Threshold:
    """Everything below `key` is pruned, and of the `ties` entries equal to it the first `ties_dropped`."""

    key: int
    ties: int
    ties_dropped: int


def find_thresholds(pieces: Pieces, groups: Sequence[Group]) -> list[Threshold]:
    """Returns each group's threshold, the same on every process. No layer may be in two groups.

    Raises ValueError naming parameters and counts, on every process, where a survivor's score is not finite. The
    processes sum int64 histograms: 768 KiB of them for one group of float32 magnitudes, 7 KiB a group for several.
    """
    keys = Keys(pieces.dtype, pieces.absolute)
    bits = _WIDE if len(groups) == 1 else _NARROW
    shift = keys.bits - bits
    counts = pieces.ranks.sum(_top_digits(pieces, groups, keys, bits))
    _check_finite(pieces, groups, keys, counts, bits)
    nothing = Threshold(keys.lowest, ties=0, ties_dropped=0)
    if not any(group.drop for group in groups):
        return [nothing] * len(groups)
    found = [_locate(row, group.drop) for row, group in zip(counts, groups, strict=True)]
    prefixes = [digit - keys.top_offset(bits) for digit, _ in found]
    while shift:
        shift -= bits
        counts = pieces.ranks.sum(_next_digits(pieces, groups, keys, bits, shift, prefixes))
        found = [_locate(row, rank) for row, (_, rank) in zip(counts, found, strict=True)]
        prefixes = [(prefix << bits) | digit for prefix, (digit, _) in zip(prefixes, found, strict=True)]
    return [
        Threshold(prefix, ties=int(row[digit]), ties_dropped=rank) if group.drop else nothing
        for group, row, prefix, (digit, rank) in zip(groups, counts, prefixes, found, strict=True)
    ]


def apply_thresholds(pieces: Pieces, groups: Sequence[Group], thresholds: Sequence[Threshold]) -> dict[int, Tensor]:
    """Returns the masks, contiguous bool tensors, of the survivors here that the thresholds keep, by place."""
    keys = Keys(pieces.dtype, pieces.absolute)
    masks: dict[int, Tensor] = {}
    for group, threshold in zip(groups, thresholds, strict=True):
        masks |= {piece.place: _above(piece, keys, threshold.key) for piece in pieces.of(group.layers)}
    # The same on every process, as the thresholds are.
    if any(threshold.ties_dropped < threshold.ties for threshold in thresholds):
        _keep_last_ties_(masks, pieces, groups, thresholds, keys)
    return masks


def _top_digits(pieces: Pieces, groups: Sequence[Group], keys: Keys, bits: int) -> Tensor:
    """Returns how many survivors here have each top digit, one row a group."""
    shift, offset, bins = keys.bits - bits, keys.top_offset(bits), keys.top_digits(bits)

    def count(_: int, chunk: Tensor, alive: Tensor | None) -> Tensor:
        # Bin 0 takes the pruned entries, which costs less than gathering the others.
        digits = (chunk >> shift).to(torch.int32).add_(offset + 1)
        if alive is not None:
            digits.mul_(alive)
        return torch.bincount(digits, minlength=bins + 1)[1:]

    return _histograms(pieces, groups, keys, bins, count)


def _next_digits(
    pieces: Pieces, groups: Sequence[Group], keys: Keys, bits: int, shift: int, prefixes: Sequence[int]
) -> Tensor:
    """Returns how many survivors here have each digit at `shift` below their group's prefix, one row a group."""
    bins = 1 << bits

    def count(row: int, chunk: Tensor, alive: Tensor | None) -> Tensor:
        chosen = (chunk >> (shift + bits)) == prefixes[row]
        if alive is not None:
            chosen.logical_and_(alive)
        return torch.bincount((chunk[chosen] >> shift) & (bins - 1), minlength=bins)

    return _histograms(pieces, groups, keys, bins, count)


def _histograms(
    pieces: Pieces,
    groups: Sequence[Group],
    keys: Keys,
    bins: int,
    count: Callable[[int, Tensor, Tensor | None], Tensor],
) -> Tensor:
    """Returns the sum over the pieces here of `count`'s histograms of their chunks, one row a group."""
    total = torch.zeros(len(groups), bins, dtype=torch.int64)
    for row, group in enumerate(groups):
        for piece in pieces.of(group.layers):
            counts = torch.zeros(bins, dtype=torch.int64, device=piece.scores.device)
            for _, chunk, alive in keys.chunks(piece.scores, piece.survivors):
                counts += count(row, chunk, alive)
            total[row] += counts.cpu()
    return total


def _locate(histogram: Tensor, rank: int) -> tuple[int, int]:
    """Returns the digit of the `rank`-th lowest entry (from 1) and its rank among those of that digit."""
    running = histogram.cumsum(0)
    assert 0 <= rank <= int(running[-1])
    digit = int(torch.searchsorted(running, rank))
    return digit, rank - int(running[digit] - histogram[digit])


def _check_finite(pieces: Pieces, groups: Sequence[Group], keys: Keys, counts: Tensor, bits: int) -> None:
    """Raises ValueError where a survivor's score is infinite or NaN, in every process if in one.

    Looks at the scores once more only where the top digits leave it open, which infinities can share with the
    largest finite floats.
    """
    high = keys.top_offset(bits) + keys.infinity_digit(bits)
    low = keys.top_offset(bits) - keys.infinity_digit(bits)
    if not counts[:, high:].any() and not counts[:, : max(low + 1, 0)].any():
        return
    layers = [layer for group in groups for layer in group.layers]
    wrong = torch.zeros(len(layers), dtype=torch.int64)
    for piece in pieces.of(layers):
        bad = piece.scores.isfinite().logical_not_()
        alive = bad if piece.survivors is None else bad.logical_and_(piece.survivors)
        wrong[layers.index(piece.layer)] += int(alive.count_nonzero())
    found = zip(layers, pieces.ranks.sum(wrong).tolist(), strict=True)
    named = ", ".join(f"{count:,} of {name!r}" for name, count in found if count)
    if named:
        raise ValueError(f"expected finite scores, got inf or nan for {named}")


def _above(piece: Piece, keys: Keys, key: int) -> Tensor:
    """Returns the mask of the survivors whose keys lie above `key`."""
    mask = torch.empty(piece.scores.shape, dtype=torch.bool, device=piece.scores.device)
    flat = mask.view(-1)
    for where, chunk, alive in keys.chunks(piece.scores, piece.survivors):
        kept = torch.gt(chunk, key, out=flat[where])
        if alive is not None:
            kept.logical_and_(alive)
    return mask


def _ties(piece: Piece, keys: Keys, key: int) -> Iterator[tuple[slice, Tensor]]:
    """Yields the place of each chunk, and which of its survivors have just this key."""
    for where, chunk, alive in keys.chunks(piece.scores, piece.survivors):
        equal = chunk == key
        yield where, equal if alive is None else equal.logical_and_(alive)


def _keep_last_ties_(
    masks: Mapping[int, Tensor],
    pieces: Pieces,
    groups: Sequence[Group],
    thresholds: Sequence[Threshold],
    keys: Keys,
) -> None:
    """Keeps all survivors that equal their threshold but the first `ties_dropped`, counted over all processes."""
    rows = {layer: row for row, group in enumerate(groups) for layer in group.layers}
    grouped = [piece for piece in pieces.here if piece.layer in rows]
    ties = torch.zeros(len(pieces.order), dtype=torch.int64)
    for piece in grouped:
        key = thresholds[rows[piece.layer]].key
        ties[piece.place] = sum(int(tie.count_nonzero()) for _, tie in _ties(piece, keys, key))
    earlier = _earlier(pieces.order, rows, pieces.ranks.sum(ties).tolist())
    for piece in grouped:
        threshold, seen = thresholds[rows[piece.layer]], earlier[piece.place]
        flat = masks[piece.place].view(-1)
        for where, tie in _ties(piece, keys, threshold.key):
            indices = tie.nonzero().view(-1)
            flat[where][indices[max(threshold.ties_dropped - seen, 0) :]] = True
            seen += indices.numel()


def _earlier(order: Sequence[str], rows: Mapping[str, int], ties: Sequence[int]) -> list[int]:
    """Returns for each place the number of ties of its group at the places before it."""
    seen = dict.fromkeys(rows.values(), 0)
    earlier = [0] * len(order)
    for place, layer in enumerate(order):
        if layer in rows:
            earlier[place] = seen[rows[layer]]
            seen[rows[layer]] += ties[place]
    return earlier
