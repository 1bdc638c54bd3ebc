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
) -> Evaluation:
    """Runs the model over the split in eval mode without gradients, and puts its mode back.

    An example's score is 1 or 0 for an image, and the fraction of right tokens for a sequence.
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    scores = []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(split), batch_size):
                indices = torch.arange(start, min(start + batch_size, len(split)))
                x, y = (tensor.to(device, non_blocking=True) for tensor in split.batch(indices))
                output = model(x)
                total += loss(output, y).double() * len(indices)
                scores.append(
                    (output.argmax(-1) == y).float().flatten(1).mean(1) if y.dim() > 1 else output.argmax(-1) == y
                )
    finally:
        model.train(was_training)
    return Evaluation(float(total) / len(split), torch.cat(scores).float().cpu())
