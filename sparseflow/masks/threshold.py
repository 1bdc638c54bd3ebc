"""The exact global threshold: which scores are the lowest k, by radix over the bits of their keys.

Counting the digits of the keys, 16 bits at a time from the top, finds the k-th lowest in one pass (16-bit
floats), two (float32) or four (float64), without a sort, a concatenation or a copy beyond one chunk. Counts
are integers, so the result does not depend on threads, processes or the order of sums. Equal scores are
pruned lowest global index first, as by a stable sort.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow.masks.criteria import Scores
from sparseflow.masks.keys import DIGIT_BITS, Keys

_DIGITS = 1 << DIGIT_BITS


@dataclass(frozen=True)
class Threshold:
    """Everything below `key` is pruned, and of the `ties` entries equal to it the first `ties_dropped`."""

    key: int
    ties: int
    ties_dropped: int


def find_threshold(
    scores: Scores,
    survivors: Mapping[str, Tensor] | None,
    drop: int,
    all_reduce: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> Threshold:
    """Returns the threshold under which exactly `drop` survivors lie.

    survivors: bool tensors; only True entries take part, whatever the scores of the others; None: all do.
    all_reduce: sums an int64 CPU tensor over the processes that hold other parts; `drop` counts all parts.
    Raises ValueError naming parameter and count where a survivor's score is not finite.
    """
    keys = Keys(scores, survivors)
    shift = keys.bits - DIGIT_BITS
    histogram = all_reduce(_top_digits(keys, shift))
    _check_finite(keys, histogram, all_reduce)
    assert 0 <= drop <= int(histogram.sum())
    if drop == 0:
        return Threshold(keys.lowest, ties=0, ties_dropped=0)
    digit, rank = _locate(histogram, drop)
    prefix = digit - keys.top_offset
    while shift:
        shift -= DIGIT_BITS
        histogram = all_reduce(_next_digits(keys, shift, prefix))
        digit, rank = _locate(histogram, rank)
        prefix = (prefix << DIGIT_BITS) | digit
    return Threshold(prefix, ties=int(histogram[digit]), ties_dropped=rank)


def apply_threshold(
    scores: Scores,
    survivors: Mapping[str, Tensor] | None,
    threshold: Threshold,
    earlier_ties: Callable[[Tensor], Tensor] = lambda counts: counts.cumsum(0) - counts,
) -> dict[str, Tensor]:
    """Returns the masks, contiguous bool tensors, of the survivors that `threshold` keeps.

    earlier_ties: from this process's number of ties in each parameter (int64, CPU) to the number of ties, in
    any process, at lower global indices than each parameter's first one here.
    """
    keys = Keys(scores, survivors)
    masks = {
        name: torch.empty(tensor.shape, dtype=torch.bool, device=tensor.device)
        for name, tensor in scores.tensors.items()
    }
    for name, mask in masks.items():
        flat = mask.view(-1)
        for where, chunk, alive in keys.chunks(name):
            kept = torch.gt(chunk, threshold.key, out=flat[where])
            if alive is not None:
                kept.logical_and_(alive)
    if threshold.ties_dropped < threshold.ties:
        _keep_last_ties_(masks, keys, threshold, earlier_ties)
    return masks


def _top_digits(keys: Keys, shift: int) -> Tensor:
    """Returns how many survivors have each top digit."""
    total = torch.zeros(_DIGITS, dtype=torch.int64)
    for name, tensor in keys.scores.tensors.items():
        # Bin 0 takes the pruned entries, which costs less than gathering the others.
        counts = torch.zeros(_DIGITS + 1, dtype=torch.int64, device=tensor.device)
        for _, chunk, alive in keys.chunks(name):
            bins = (chunk >> shift).to(torch.int32).add_(keys.top_offset + 1)
            if alive is not None:
                bins.mul_(alive)
            counts += torch.bincount(bins, minlength=_DIGITS + 1)
        total += counts[1:].cpu()
    return total


def _next_digits(keys: Keys, shift: int, prefix: int) -> Tensor:
    """Returns how many survivors have each digit at `shift`, among those whose higher digits are `prefix`."""
    total = torch.zeros(_DIGITS, dtype=torch.int64)
    for name, tensor in keys.scores.tensors.items():
        counts = torch.zeros(_DIGITS, dtype=torch.int64, device=tensor.device)
        for _, chunk, alive in keys.chunks(name):
            chosen = (chunk >> (shift + DIGIT_BITS)) == prefix
            if alive is not None:
                chosen.logical_and_(alive)
            counts += torch.bincount((chunk[chosen] >> shift) & (_DIGITS - 1), minlength=_DIGITS)
        total += counts.cpu()
    return total


def _locate(histogram: Tensor, rank: int) -> tuple[int, int]:
    """Returns the digit of the `rank`-th lowest entry (from 1) and its rank among those of that digit."""
    running = histogram.cumsum(0)
    digit = int(torch.searchsorted(running, rank))
    return digit, rank - int(running[digit] - histogram[digit])


def _check_finite(keys: Keys, histogram: Tensor, all_reduce: Callable[[Tensor], Tensor]) -> None:
    """Raises ValueError where a survivor's score is infinite or NaN, in every process if in one.

    Looks at the scores once more only where the histogram of top digits leaves it open: the lowest digit that
    -inf shares with the largest negative floats.
    """
    low, high = keys.top_offset - keys.infinity_digit, keys.top_offset + keys.infinity_digit
    if not histogram[high:].any() and not histogram[: max(low + 1, 0)].any():
        return
    found: dict[str, int] = {}
    for name, tensor in keys.scores.tensors.items():
        wrong = tensor.isfinite().logical_not_()
        found[name] = int((wrong if keys.survivors is None else wrong & keys.survivors[name]).sum())
    if int(all_reduce(torch.tensor([sum(found.values())]))):
        here = ", ".join(f"{count:,} of {name!r}" for name, count in found.items() if count)
        raise ValueError(f"expected finite scores, got inf or nan for {here or 'weights of another process'}")


def _keep_last_ties_(
    masks: Mapping[str, Tensor], keys: Keys, threshold: Threshold, earlier_ties: Callable[[Tensor], Tensor]
) -> None:
    def ties(name: str) -> Iterator[tuple[slice, Tensor]]:
        for where, chunk, alive in keys.chunks(name):
            equal = chunk == threshold.key
            yield where, equal if alive is None else equal.logical_and_(alive)

    here = torch.tensor([sum(int(tie.count_nonzero()) for _, tie in ties(name)) for name in masks])
    for name, seen in zip(masks, earlier_ties(here).tolist(), strict=True):
        flat = masks[name].view(-1)
        for where, tie in ties(name):
            indices = tie.nonzero().view(-1)
            flat[where][indices[max(threshold.ties_dropped - seen, 0) :]] = True
            seen += indices.numel()
