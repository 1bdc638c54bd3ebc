"""λ, the load imbalance of a mask: the weights of its busiest line of cores over the mean."""

from __future__ import annotations

from math import ceil, sqrt
from statistics import NormalDist

import torch
from torch import Tensor


def line_weights(mask_OI: Tensor, lines: int) -> Tensor:
    """(O, lines): how many kept weights of each row belong to each line's features."""
    line_of_I = torch.arange(mask_OI.shape[1]) * lines // mask_OI.shape[1]
    counts = torch.zeros(mask_OI.shape[0], lines, dtype=torch.int64)
    return counts.index_add_(1, line_of_I, mask_OI.cpu().to(torch.int64))


def imbalance(mask_OI: Tensor, lines: int) -> float:
    """λ of a mask, its inputs shared out over so many lines."""
    per_line = line_weights(mask_OI, lines).sum(0)
    return float(per_line.max() / per_line.double().mean())


def expected_imbalance(nnz: float, density: float, features: int, lines: int) -> float:
    """λ of a random mask: the mean of the largest of `lines` binomial counts, taken as normal (Blom, 1958).

    Where lines do not divide the features, the busiest has one feature more than the mean.
    """
    most = nnz * ceil(features / lines) / features
    if lines > 1:
        deviations = NormalDist().inv_cdf((lines - 0.375) / (lines + 0.25))
        # No line has more than all of its weights.
        most = min(most / density, most + deviations * sqrt(most * (1 - density)))
    return most * lines / nnz
