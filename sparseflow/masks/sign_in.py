"""Sign-In's algebra (Gadhikar et al., 2025, arXiv:2504.12801): θ = m ⊙ w lets a weight cross zero; and signs counted.

Under gradient flow m² − w² = β stays as it is, and θ moves by dθ = −(m² + w²) dL/dθ. By the algebra
m² + w² = √(β² + 4θ²), which at θ = 0 is β: there a plain weight and its sign change slowly, and this one does not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def split(theta: Tensor, beta: float | Tensor) -> tuple[Tensor, Tensor]:
    """The m > 0 and the w with m · w = θ and m² − w² = β: m = √((β + √(β² + 4θ²)) / 2), w = θ / m; β > 0."""
    m = ((beta + speed(theta, beta)) / 2).sqrt()
    return m, theta / m


def speed(theta: Tensor, beta: float | Tensor) -> Tensor:
    """m² + w² = √(β² + 4θ²): by how much faster than under plain gradient flow θ moves."""
    return (beta**2 + 4 * theta**2).sqrt()


def recovers(a: Tensor, w: Tensor, beta_a: float | Tensor, beta_w: float | Tensor) -> Tensor:
    """Whether f(x) = a · relu(w x) learns relu(x) from a < 0 < w, under the flow with θ = a and θ = w both split.

    It does where a reaches zero before w: √(4a² + β_a²) − β_a < √(4w² + β_w²) − β_w. Not split, it does where
    |a| < |w| alone; from w < 0 it never does.
    """
    return speed(a, beta_a) - beta_a < speed(w, beta_w) - beta_w


def sign_flips(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, int]:
    """How many kept weights of each layer were on the other side of zero before; zero itself is on neither."""
    return {
        name: int(((before[name].to(mask.device) * after[name].to(mask.device) < 0) & mask).count_nonzero())
        for name, mask in masks.items()
    }


def split_where_new(m: Tensor, w: Tensor, theta: Tensor, beta: float) -> None:
    """Splits θ anew, in place, where m and w are both zero: weights that a change of mask has just brought in."""
    # Without asking whether there are any: a GPU would have to wait for the answer.
    new = (m == 0) & (w == 0)
    for old, fresh in zip((m, w), split(theta, beta)):
        old.copy_(torch.where(new, fresh, old))
