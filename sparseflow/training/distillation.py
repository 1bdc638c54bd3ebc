"""Ticket distillation: a ticket that learns from a teacher's outputs beside the targets (arXiv:1503.02531).

The teacher runs once over the training examples; batches then carry its logits behind their targets, and the loss takes
both apart. Validation and test stay as they are, measured by cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseflow.data import Data, Split
from sparseflow.training.evaluation import cross_entropy


@dataclass(frozen=True)
class Distillation:
    """α T² KL(softmax(z_teacher / T) ‖ softmax(z_student / T)) + (1 − α) CE (Hinton et al., 2015, §2).

    A loss for `Trainer`, on `distilled` data. T² keeps the gradient's size as T grows. Targets without logits, those of
    validation and test, give cross-entropy alone.
    """

    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 <= self.alpha <= 1:
            raise ValueError(
                f"distillation: expected temperature > 0 and alpha in [0, 1], got temperature={self.temperature}, "
                f"alpha={self.alpha}"
            )

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        if not target.is_floating_point():
            return cross_entropy(output, target)
        targets, logits = target[:, 0].long(), target[:, 1:]
        if logits.shape != output.shape:
            raise ValueError(
                f"distillation: expected a teacher and a student of the same classes, got {logits.shape[1]} and "
                f"{output.shape[-1]}"
            )
        plain = (1 - self.alpha) * cross_entropy(output, targets)
        if not self.alpha:
            return plain
        return plain + self.alpha * soft_cross_entropy(output, logits, self.temperature)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over examples; logits (B, K)."""
    ours, theirs = (F.log_softmax(logits / temperature, -1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def distilled(data: Data, teacher: nn.Module, batch_size: int = 1000) -> Data:
    """The same data, the teacher's logits behind each training target; it runs once over them, in eval mode.

    `ValueError` for anything but classification.
    """
    if data.task != "classification":
        raise ValueError(f"distillation: expected data of the task classification, got {data.task}")
    was_training = teacher.training
    teacher.eval()
    device = next(teacher.parameters()).device
    try:
        with torch.no_grad():
            batches = torch.split(torch.arange(len(data.train)), batch_size)
            found = [teacher(data.train.batch(indices)[0].to(device)).float().cpu() for indices in batches]
    finally:
        teacher.train(was_training)
    return replace(data, train=_Taught(data.train, torch.cat(found)))


@dataclass(frozen=True, eq=False)
class _Taught:
    """A split whose targets are (B, 1 + K): the class, exact in float32, and the teacher's logits."""

    split: Split
    logits: Tensor

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.split.batch(indices)
        return x, torch.cat([y.float().unsqueeze(1), self.logits.index_select(0, indices)], 1)
