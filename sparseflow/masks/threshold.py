"""The exact threshold: which scores are the lowest k, by radix over the bits of their keys.

Counting the digits of the keys from the top finds the k-th lowest, without a sort, a concatenation or a copy beyond
one chunk: in one pass (16-bit floats), two (float32) or four (float64) for one threshold over all layers or for those
of a few large ones, in twice as many, of digits of 8 bits, for thresholds of many layers at once. Only counts pass
between processes. They are integers, so the result does not depend on threads, processes or the order of sums. Equal
scores are pruned lowest global index first, as by a stable sort.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor

from sparseflow.masks.keys import Keys
from sparseflow.masks.pieces import Piece, Pieces

# Bits of a digit: few passes for one group, small histograms for many.
_WIDE = 16
_NARROW = 8
# Scores of a piece from which on the kernel counts them.
_NATIVE = 1 << 16


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
    bits = _digit_bits(pieces, groups)
    digit = _Digit(keys, keys.bits - bits, bits)
    counts = pieces.ranks.sum(_histograms(pieces, groups, digit, [0] * len(groups)))
    _check_finite(pieces, groups, keys, counts, bits)
    nothing = Threshold(keys.lowest, ties=0, ties_dropped=0)
    if not any(group.drop for group in groups):
        return [nothing] * len(groups)
    found = [_locate(row, group.drop) for row, group in zip(counts, groups, strict=True)]
    prefixes = [value - keys.top_offset(bits) for value, _ in found]
    while digit.shift:
        digit = replace(digit, shift=digit.shift - bits)
        counts = pieces.ranks.sum(_histograms(pieces, groups, digit, prefixes))
        found = [_locate(row, rank) for row, (_, rank) in zip(counts, found, strict=True)]
        prefixes = [(prefix << bits) | value for prefix, (value, _) in zip(prefixes, found, strict=True)]
    return [
        Threshold(prefix, ties=int(row[value]), ties_dropped=rank) if group.drop else nothing
        for group, row, prefix, (value, rank) in zip(groups, counts, prefixes, found, strict=True)
    ]


def _digit_bits(pieces: Pieces, groups: Sequence[Group]) -> int:
    # Half the passes, but histograms of half a megabyte: not where many must be sent, or count small layers.
    if len(groups) == 1:
        return _WIDE
    scores = sum(piece.scores.numel() for piece in pieces.here)
    return _WIDE if pieces.ranks.world == 1 and scores >= len(groups) << _WIDE else _NARROW


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


@dataclass(frozen=True)
class _Digit:
    """The digit of each key that is counted: `bits` from `shift` on, where all above them equals the prefix."""

    keys: Keys
    shift: int
    bits: int

    @property
    def bins(self) -> int:
        """How many values it can have."""
        return self.keys.top_digits(self.bits) if self.is_top else 1 << self.bits

    @property
    def is_top(self) -> bool:
        """Whether nothing is above it."""
        return self.shift + self.bits == self.keys.bits


def _histograms(pieces: Pieces, groups: Sequence[Group], digit: _Digit, prefixes: Sequence[int]) -> Tensor:
    """Returns how many survivors here have each value of the digit, one row a group."""
    total = torch.zeros(len(groups), digit.bins, dtype=torch.int64)
    for group, prefix, row in zip(groups, prefixes, total, strict=True):
        for piece in pieces.of(group.layers):
            if _native(piece, digit.keys):
                _count_natively_(row, piece, digit, prefix)
                continue
            counts = torch.zeros(digit.bins, dtype=torch.int64, device=piece.scores.device)
            for _, chunk, alive in digit.keys.chunks(piece.scores, piece.survivors):
                counts += _top_digits(chunk, alive, digit) if digit.is_top else _digits(chunk, alive, digit, prefix)
            row += counts.cpu()
    return total


def _top_digits(chunk: Tensor, alive: Tensor | None, digit: _Digit) -> Tensor:
    # Bin 0 takes the pruned entries, which costs less than gathering the others.
    bins = (chunk >> digit.shift).to(torch.int32).add_(digit.keys.top_offset(digit.bits) + 1)
    if alive is not None:
        bins.mul_(alive)
    return torch.bincount(bins, minlength=digit.bins + 1)[1:]


def _digits(chunk: Tensor, alive: Tensor | None, digit: _Digit, prefix: int) -> Tensor:
    chosen = (chunk >> (digit.shift + digit.bits)) == prefix
    if alive is not None:
        chosen.logical_and_(alive)
    return torch.bincount((chunk[chosen] >> digit.shift) & (digit.bins - 1), minlength=digit.bins)


def _native(piece: Piece, keys: Keys) -> bool:
    """Whether kernels see to it: float32 magnitudes on the CPU, and enough of them to be worth compiling them."""
    scores = piece.scores
    return (
        keys.absolute
        and keys.dtype == scores.dtype == torch.float32
        and scores.is_cpu
        and scores.numel() >= _NATIVE
        and scores.is_contiguous()
        and find_spec("llvmlite") is not None
    )


def _count_natively_(counts: Tensor, piece: Piece, digit: _Digit, prefix: int) -> None:
    # llvmlite is loaded for the first large layer, not with the package.
    from sparseflow_kernels.cpu_digits import count_digits

    alive = None if piece.survivors is None else piece.survivors.contiguous()
    count_digits(piece.scores, alive, counts, digit.shift, digit.bits, prefix)


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
        raise ValueError(f"expected finite scores{pieces.origin}, got inf or nan for {named}")


def _above(piece: Piece, keys: Keys, key: int) -> Tensor:
    """Returns the mask of the survivors whose keys lie above `key`."""
    if piece.survivors is not None and _native(piece, keys):
        from sparseflow_kernels.cpu_digits import mark_above

        return mark_above(piece.scores, piece.survivors.contiguous(), key)
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
