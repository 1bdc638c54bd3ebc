"""Importance: scores rescaled within each layer, so that one threshold over all layers is fair to them.

Vandersmissen & Oramas, 2023 (arXiv:2302.11244), section 3. There of magnitudes, here of any criterion's scores s, which
may be signed. The sums, least and greatest are over the weights of the layer that are not pruned:

    l1       s / Σ|s|
    l2       sign(s) s² / Σ s²
    softmax  exp(s) / Σ exp(s)
    minmax   (s - min) / (max - min)

Within a layer all keep the order of the scores, and only the layers' budgets differ. l1, l2 and minmax do not see the
scale of a layer, softmax does. minmax gives the least of each layer 0: it prunes in every layer, each time.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from sparseflow.masks.arguments import choose
from sparseflow.masks.criteria import Scores

Importance = Literal["l1", "l2", "softmax", "minmax"]


def rescale(scores: Scores, masks: Mapping[str, Tensor] | None, by: Importance) -> Scores:
    """Returns the scores rescaled within each layer, float64 (8 bytes a weight): in float32 they would tie.

    masks: the weights that are left; None: all. Pruned ones get 0. Where a layer's scores are all 0 they stay so; by
    minmax, where they are all the same otherwise, as of a layer's last weight, they count as its greatest: 1.
    """
    rule = choose("importance", by, _RULES)
    return Scores(
        {
            name: _within(tensor.abs() if scores.absolute else tensor, None if masks is None else masks[name], rule)
            for name, tensor in scores.tensors.items()
        },
        absolute=False,
    )


def _within(scores: Tensor, mask: Tensor | None, rule: Callable[[Tensor], Tensor]) -> Tensor:
    alive = scores.reshape(-1) if mask is None else scores[mask]
    # What is not finite is left for whoever counts and reports it.
    found = rule(alive.double()) if alive.numel() and bool(alive.isfinite().all()) else alive.double()
    if mask is None:
        return found.view(scores.shape)
    rescaled = torch.zeros_like(scores, dtype=torch.float64)
    rescaled[mask] = found
    return rescaled


def _l1(scores: Tensor) -> Tensor:
    greatest = scores.abs().max()
    if not greatest:
        return scores
    # Divided twice, so that no sum overflows and no share underflows.
    shares = scores / greatest
    return shares / shares.abs().sum()


def _l2(scores: Tensor) -> Tensor:
    greatest = scores.abs().max()
    if not greatest:
        return scores
    shares = scores / greatest
    squares = shares * shares.abs()
    return squares / squares.abs().sum()


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(0)


def _minmax(scores: Tensor) -> Tensor:
    least, greatest = scores.min(), scores.max()
    if least == greatest:
        return scores.sign().abs()
    return (scores - least) / (greatest - least)


_RULES: dict[str, Callable[[Tensor], Tensor]] = {"l1": _l1, "l2": _l2, "softmax": _softmax, "minmax": _minmax}
