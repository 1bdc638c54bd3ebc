"""A task that trains in milliseconds, with everything that a rewind must restore: BatchNorm, dropout, momentum."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseflow.data import Data, TensorSplit
from sparseflow.training.trainer import Trainer

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


class Net(nn.Module):
    """8 inputs, 16 hidden units, 3 classes: 176 prunable weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.fc2 = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.dropout(F.relu(self.norm(self.fc1(x))), 0.2, self.training))
        return out


def blobs(examples: int = 60, inputs: int = 8) -> Data:
    """Points around three centres: `examples` to train on, 30 for validation and 30 for test."""
    generator = torch.Generator().manual_seed(0)
    count = examples + 60
    targets = torch.arange(count) % 3
    centres = torch.randn(3, inputs, generator=generator)
    points = centres[targets] + torch.randn(count, inputs, generator=generator)
    train, validation, test = (
        TensorSplit(points[part], targets[part]) for part in (slice(60, None), slice(0, 30), slice(30, 60))
    )
    return Data("blobs", "classification", train, validation, test, classes=3, input_shape=(inputs,))


def tiny_trainer(model: nn.Module | Callable[[], nn.Module] = Net, **changes: Any) -> Trainer:
    """A trainer of 6 steps of 20 examples, 3 steps an epoch, evaluated every second step."""
    arguments: dict[str, Any] = {"optimizer": SGD, "steps": 6, "batch_size": 20, "evaluate_every": 2, "seed": 1}
    data = changes.pop("data", None) or blobs()
    return Trainer(model, data, **{**arguments, **changes})


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a dense model's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not the same in both, to the last bit."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(_bits(a[name]), _bits(b[name]))]


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
