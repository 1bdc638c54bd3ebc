"""Mask criteria: what a weight has become, w_f, beside what it was at the start, w_i.

Zhou et al., 2019 (arXiv:1905.01067), section 2 and, for the signs, section 5. Each function takes the weights of the
start by parameter name and returns a criterion, which scores the present ones. Zhou's `large_final` is `magnitude`.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sparseflow.masks.criteria import Criterion, Scores

Start = Mapping[str, Tensor]


def movement(start: Start) -> Criterion:
    """Scores |w_f - w_i|. Not the movement pruning of Sanh et al., 2020, which sums gradients."""
    return _scored("movement", start, lambda final, initial: (final - initial).abs())


def magnitude_increase(start: Start) -> Criterion:
    """Scores |w_f| - |w_i|."""
    return _scored("magnitude_increase", start, lambda final, initial: final.abs() - initial.abs())


def large_init_large_final(start: Start) -> Criterion:
    """Scores min(|w_f|, |w_i|). There min(α |w_f|, |w_i|), with an α that evens out the two; here α is 1."""
    return _scored("large_init_large_final", start, lambda final, initial: torch.minimum(final.abs(), initial.abs()))


def large_final_same_sign(start: Start) -> Criterion:
    """Scores max(0, w_f sign(w_i)): its masks make networks that are better than chance before any training."""
    return _scored("large_final_same_sign", start, lambda final, initial: (final * initial.sign()).clamp_min(0.0))


def _scored(name: str, start: Start, score: Callable[[Tensor, Tensor], Tensor]) -> Criterion:
    def criterion(weights: Mapping[str, Tensor], seed: int = 0) -> Scores:
        _check(name, start, weights)
        return Scores({key: score(weight, start[key].to(weight)) for key, weight in weights.items()}, absolute=False)

    return criterion


def _check(name: str, start: Start, weights: Mapping[str, Tensor]) -> None:
    for key, weight in weights.items():
        if key not in start or start[key].shape != weight.shape:
            got = tuple(start[key].shape) if key in start else "none"
            raise ValueError(
                f"criterion {name!r}: expected a weight of the start of shape {tuple(weight.shape)} for {key!r}, "
                f"got {got}; pass the state before training, of the same model"
            )
