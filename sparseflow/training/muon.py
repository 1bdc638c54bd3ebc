"""Muon: matrices move by the orthogonalised momentum, everything else by AdamW.

Jordan et al., 2024 (https://kellerjordan.github.io/posts/muon); Liu et al., 2025 (arXiv:2502.16982). torch.optim.Muon
takes nothing but matrices; this one also takes kernels, which it flattens to (outputs, rest), and has AdamW beside it,
so that one optimizer trains a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.survey import survey

# The quintic a x + b x³ + c x⁵ of the reference code: five times over, it takes [0.01, 1] into [0.68, 1.14].
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Muon for the groups that say `orthogonal: True`, AdamW at `adamw_lr` for all others.

    Groups that say nothing, and plain parameters, are split: two and more dimensions are orthogonal. `muon_groups`
    makes the groups that the authors use. A step is W ← (1 − lr · decay) W − lr · √max(1, rows / columns) · NS(G), with
    G = (1 − β) g + β m the Nesterov momentum of the average m ← β m + (1 − β) g.

    NS mixes all elements of a matrix, so that it also moves pruned ones: about a tenth of an update's energy leaves the
    mask. On the backend `dense` the gradient is masked before and the weight after each step, hence W ← mask · W; the
    flat values of other backends are refused with that reason. The update is then no longer orthogonal, but still well
    spread. Departure: NS in the parameter's dtype, not in bfloat16.

    `ValueError` for numbers out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        adamw_lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if lr < 0 or adamw_lr < 0 or weight_decay < 0:
            raise ValueError(
                f"Muon: expected lr, adamw_lr and weight_decay ≥ 0, got {lr}, {adamw_lr} and {weight_decay}"
            )
        if not 0 <= momentum < 1:
            raise ValueError(f"Muon: expected momentum in [0, 1), got {momentum}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "betas": tuple(betas), "eps": eps}
        given = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        split = [part for group in groups for part in _split(group, adamw_lr) if part["params"]]
        super().__init__(split, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
                if group["orthogonal"]:
                    for parameter in parameters:
                        self._orthogonal_step(parameter, group)
                else:
                    self._adamw_step(parameters, group)
        return loss

    def _orthogonal_step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(average, group["momentum"]).flatten(1)
        rows, columns = direction.shape
        rate = group["lr"] * math.sqrt(max(1, rows / columns))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonalize(direction).view_as(parameter), alpha=-rate)

    def _adamw_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """U S Vᵀ → about U Vᵀ, by Newton and Schulz's iteration X ← a X + (b A + c A²) X with A = X Xᵀ.

    It starts from X / ‖X‖. After 5 steps singular values from 0.01 ‖X‖ on have become 0.68 to 1.14. Smaller ones become
    1.21 at most, and the smallest stay small.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.t() if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.t()
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.t() if tall else x


def muon_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups for Muon: hidden matrices orthogonal, the rest for AdamW.

    Hidden is what could be pruned, linear layers and convolutions, but for the last of them, which gives the output.
    Embeddings, norms and biases are not. As in `param_groups`, what stands for a matrix decays.
    """
    sites = [site.module for site in survey(model).sites.values()][:-1]
    hidden = {id(site.values if isinstance(site, SparseLayer) else site.weight) for site in sites}
    values = {id(module.values) for module in model.modules() if isinstance(module, SparseLayer)}
    orthogonal: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in model.parameters():
        matrix = parameter.dim() >= 2 or id(parameter) in values
        (orthogonal if id(parameter) in hidden else matrices if matrix else rest).append(parameter)
    return [
        {"params": orthogonal, "orthogonal": True, "weight_decay": weight_decay},
        {"params": matrices, "orthogonal": False, "weight_decay": weight_decay},
        {"params": rest, "orthogonal": False, "weight_decay": 0.0},
    ]


def _split(group: dict[str, Any], adamw_lr: float) -> list[dict[str, Any]]:
    # Both kinds in one optimizer: a rate of one's own would hold for both, and be wrong for one of them.
    parameters = list(group["params"])
    if "orthogonal" in group:
        chosen = {id(parameter) for parameter in parameters} if group["orthogonal"] else set[int]()
    else:
        chosen = {id(parameter) for parameter in parameters if parameter.dim() >= 2}
    return [
        {**group, "params": [p for p in parameters if id(p) in chosen], "orthogonal": True},
        {"lr": adamw_lr, **group, "params": [p for p in parameters if id(p) not in chosen], "orthogonal": False},
    ]
