"""Gradients of a model's prunable weights on some data, taken on a dense copy: the model itself is never touched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparseflow.hardware.plan import densify
from sparseflow.hardware.sample import Sample, call, untouched
from sparseflow.hardware.streaming.execution import stream_of
from sparseflow.hardware.survey import survey

# Inputs as the model's forward takes them, and targets (B, ...).
Batch = tuple[Sample, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class Probe:
    """A dense copy of a model whose prunable weights can be set. Costs the memory of the dense model once more."""

    def __init__(self, model: nn.Module) -> None:
        if stream_of(model) is not None:
            raise ValueError(
                "this criterion takes gradients on a dense copy of the model, and a streamed model has no copy; prune "
                "it by a criterion of the weights alone, such as magnitude"
            )
        self.model = densify(copy.deepcopy(model))
        self.model.requires_grad_(True)
        self._weights = {name: site.weight for name, site in survey(self.model).sites.items()}

    def set(self, weights: Mapping[str, Tensor]) -> list[nn.Parameter]:
        """Gives the weights to the copy, which only reads them; returns its parameters in their order."""
        for name, weight in weights.items():
            parameter = self._weights[name]
            # Not copied: that would cost a fifth of a small pass.
            parameter.data = weight.detach().to(parameter)
        return [self._weights[name] for name in weights]

    @contextmanager
    def at_init(self) -> Iterator[None]:
        """Eval mode, but for BatchNorm, which normalises by the batch: at initialisation it has seen nothing else."""
        with untouched(self.model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
            yield

    def loss(self, batch: Batch, loss: Loss, temperature: float = 1.0) -> Tensor:
        """The loss of a batch; the model's output is divided by `temperature`."""
        x, y = batch
        output = call(self.model, x)
        if temperature == 1.0:
            # Whatever the model returns, the caller's loss knows it.
            return loss(cast(Tensor, output), y)
        if not isinstance(output, Tensor):
            raise ValueError(f"grasp: expected a model that returns logits, got {type(output).__name__}")
        return loss(output / temperature, y)


def weighed(batches: Sequence[Batch]) -> list[tuple[float, Batch]]:
    """Each batch with its share of all examples: what makes the mean over batches one over examples."""
    total = sum(len(y) for _, y in batches)
    return [(len(y) / total, (x, y)) for x, y in batches]


def on_device(batches: Iterable[Batch], device: torch.device) -> list[Batch]:
    """All batches, their tensors on `device`."""
    return [(_moved(x, device), y.to(device)) for x, y in batches]


def _moved(sample: Sample, device: torch.device) -> Sample:
    if isinstance(sample, Tensor):
        return sample.to(device)
    if isinstance(sample, Mapping):
        return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in sample.items()}
    return tuple(value.to(device) if isinstance(value, Tensor) else value for value in sample)
