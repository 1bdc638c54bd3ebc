"""A model measured on a split: mean loss, accuracy, and a score for each example.

Shapes: B examples of a batch, K classes or vocabulary, T positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseflow.data import Split
from sparseflow.ranks import ALONE, Ranks

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """`loss` is the mean over batches weighted by their examples; `scores` (examples,) are in [0, 1]."""

    loss: float
    scores: Tensor

    @property
    def accuracy(self) -> float:
        """The mean score: the fraction of images, or of tokens, that are right."""
        return float(self.scores.double().mean())


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, K) with classes (B,), or of (B, T, K) with tokens (B, T)."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    loss: Loss = cross_entropy,
    batch_size: int = 1000,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Runs the model over the split in eval mode without gradients, and puts its mode back.

    An example's score is 1 or 0 for an image, and the fraction of right tokens for a sequence. On many ranks each
    runs some of the batches, and all get what one alone would have found, to the last bit.
    """
    starts = range(0, len(split), batch_size)
    losses = torch.zeros(len(starts), dtype=torch.float64, device=device)
    scores = torch.zeros(len(split), device=device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for number in _share(len(starts), ranks):
                start = starts[min(number, len(starts) - 1)]
                indices = torch.arange(start, min(start + batch_size, len(split)))
                x, y = (tensor.to(device, non_blocking=True) for tensor in split.batch(indices))
                output = model(x)
                if number < len(starts):
                    losses[number] = loss(output, y).double() * len(indices)
                    scores[start : start + len(indices)] = _scores(output, y)
    finally:
        model.train(was_training)
    # Added in the order of the batches; every number is one rank's own beside zeros.
    total = float(ranks.sum(losses.cpu()).cumsum(0)[-1])
    return Evaluation(total / len(split), ranks.sum(scores.cpu()))


def _share(batches: int, ranks: Ranks) -> range:
    # As many on each rank, for a model whose weights are sharded runs on all of them or on none.
    return range(ranks.rank, -(-batches // ranks.world) * ranks.world, ranks.world)


def _scores(output: Tensor, y: Tensor) -> Tensor:
    right = (output.argmax(-1) == y).float()
    return right.flatten(1).mean(1) if y.dim() > 1 else right
