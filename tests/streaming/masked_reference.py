"""Masked training on torch: the same model and operations, its optimizer on the kept values alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

MakeOptimizer = Callable[[Sequence[Tensor]], torch.optim.Optimizer]


class Masked:
    """A plain model whose pruned weights are zero, and an optimizer of the kept values in canonical order."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor], make_optimizer: MakeOptimizer) -> None:
        self.model, self.parameters = model, dict(model.named_parameters())
        every = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in self.parameters.items()}
        self.masks = {**every, **masks}
        self.values = {
            name: p.detach()[self.masks[name]].requires_grad_(p.requires_grad) for name, p in self.parameters.items()
        }
        self.optimizer = make_optimizer(list(self.values.values()))
        self._put_back()

    def step(self, losses: Sequence[Callable[[nn.Module], Tensor]]) -> list[Tensor]:
        """One step of one or more micro-batches, whose gradients add up as autograd does it."""
        self.model.zero_grad()
        found = [loss(self.model) for loss in losses]
        for loss in found:
            loss.backward()
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            self.values[name].grad = None if gradient is None else gradient[self.masks[name]]
        self.optimizer.step()
        self._put_back()
        return [loss.detach() for loss in found]

    @torch.no_grad()
    def _put_back(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.masked_fill_(~self.masks[name], 0.0)
            parameter[self.masks[name]] = self.values[name]


def random_masks(model: nn.Module, density: float) -> dict[str, Tensor]:
    """For every parameter of two or more dimensions."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.rand(p.shape, generator=generator) < density for name, p in model.named_parameters() if p.dim() >= 2
    }
