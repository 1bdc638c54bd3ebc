"""What the store does to values with a gradient: SGD, Adam and AdamW as torch.optim writes them, on nonzeros.

The same operations in the same order as torch's single-tensor code (torch/optim/sgd.py and adam.py, torch 2.13), so
that the same values come out, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Rule(Protocol):
    """One step of an optimizer, with the hyper-parameters of that step."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The state that it keeps beside the values, each as long as they are; 0 at first."""
        ...

    def __call__(self, values: Tensor, gradient: Tensor, state: Mapping[str, Tensor], step: int) -> None:
        """Updates values and state in place; `gradient` is only read. `step`: 1 for the first of this parameter."""
        ...


@dataclass(frozen=True)
class SGD:
    """torch.optim.SGD."""

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def __call__(self, values: Tensor, gradient: Tensor, state: Mapping[str, Tensor], step: int) -> None:
        if self.maximize:
            gradient = -gradient
        if self.weight_decay:
            gradient = gradient.add(values, alpha=self.weight_decay)
        if self.momentum:
            momentum = state["momentum"]
            if step == 1:
                momentum.copy_(gradient)
            else:
                momentum.mul_(self.momentum).add_(gradient, alpha=1 - self.dampening)
            gradient = gradient.add(momentum, alpha=self.momentum) if self.nesterov else momentum
        values.add_(gradient, alpha=-self.lr)


@dataclass(frozen=True)
class Adam:
    """torch.optim.Adam, and AdamW where the decay is decoupled."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False
    maximize: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def __call__(self, values: Tensor, gradient: Tensor, state: Mapping[str, Tensor], step: int) -> None:
        if self.maximize:
            gradient = -gradient
        if self.weight_decay and self.decoupled:
            values.mul_(1 - self.lr * self.weight_decay)
        elif self.weight_decay:
            gradient = gradient.add(values, alpha=self.weight_decay)
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        beta1, beta2 = self.betas
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction: float = (1 - beta2**step) ** 0.5
        denominator = square.sqrt().div_(correction).add_(self.eps)
        values.addcdiv_(mean, denominator, value=-(self.lr / (1 - beta1**step)))


# What a group of torch.optim may ask for that no rule does.
_REFUSED = ("amsgrad", "differentiable")
_SGD = ("lr", "momentum", "dampening", "weight_decay")
_ADAM = ("lr", "eps", "weight_decay")
_CHOICES = "SGD (momentum, dampening, nesterov, weight_decay, maximize), Adam and AdamW (all but amsgrad)"


def rule_of(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> Rule:
    """The rule for one of an optimizer's groups as it is now.

    `ValueError` that lists the choices for another optimizer and for an option that the store does not know.
    """
    for option in _REFUSED:
        if group.get(option):
            raise ValueError(f"a store cannot run {type(optimizer).__name__} with {option}=True; it can run {_CHOICES}")
    if type(optimizer) is torch.optim.SGD:
        lr, momentum, dampening, decay = (float(group[name]) for name in _SGD)
        return SGD(lr, momentum, dampening, decay, group["nesterov"], group["maximize"])
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        beta1, beta2 = map(float, group["betas"])
        lr, eps, decay = (float(group[name]) for name in _ADAM)
        return Adam(lr, (beta1, beta2), eps, decay, group["decoupled_weight_decay"], group["maximize"])
    raise ValueError(f"a store cannot run {type(optimizer).__name__}; it can run {_CHOICES}")
