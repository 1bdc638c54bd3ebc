"""Sign-In as an optimizer: SGD on m and w in the place of θ = m ⊙ w, over the values of sparse layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from sparseflow.hardware.optimizers import layers_of
from sparseflow.masks.sign_in import split, split_where_new

Momentum = Literal["zero", "rescale"]


class SignIn(torch.optim.Optimizer):
    """SGD with momentum where each kept weight θ of a sparse layer is m · w (Gadhikar et al., 2025, arXiv:2504.12801).

    dm = w · dL/dθ and dw = m · dL/dθ. Every `every` steps, up to step `until`, m and w are split anew from θ, which
    stays: m = √((β + √(β² + 4θ²)) / 2), w = θ / m. What momentum had gathered in the old scaling is then dropped
    (`momentum_at_rescale="zero"`), or scaled along with the factor that it was made of ("rescale": that of m by
    w′ / w, that of w by m′ / m). Biases, norms and dense layers get plain SGD. `weight_decay` acts on m and w, which
    is a penalty on |θ|: keep it small.

    The parameter is θ throughout: masks, files and the forward see nothing of m and w, which are optimizer state, as
    is a new weight's: split from what it starts with. Departure: how often the paper rescales and when it ends is not
    known here, so both are the caller's. With an adaptive optimizer the method would do nothing, hence SGD alone.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        beta: float = 1.0,
        every: int = 100,
        until: int | None = None,
        momentum_at_rescale: Momentum = "zero",
    ) -> None:
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0:
            raise ValueError(
                "SignIn: expected lr ≥ 0, momentum in [0, 1) and weight_decay ≥ 0, got "
                f"lr={lr}, momentum={momentum}, weight_decay={weight_decay}"
            )
        if not beta > 0:
            raise ValueError(f"SignIn: expected beta above 0, for it divides where a weight is zero, got {beta}")
        if every < 1 or (until is not None and until < 0):
            raise ValueError(f"SignIn: expected every ≥ 1 and until ≥ 0 steps, got every={every}, until={until}")
        if momentum_at_rescale not in ("zero", "rescale"):
            raise ValueError(f"SignIn: expected momentum_at_rescale zero or rescale, got {momentum_at_rescale!r}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "beta": beta,
            "every": every,
            "until": until,
            "momentum_at_rescale": momentum_at_rescale,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Any:  # type: ignore[override]
        """One step. `closure` computes the loss anew, as with every optimizer of torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if layers_of(parameter):
                    self._step_split(parameter, parameter.grad, state, group)
                else:
                    parameter.sub_(group["lr"] * self._direction(parameter, parameter.grad, "momentum", state, group))
        return loss

    def _step_split(self, theta: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta: float = group["beta"]
        if "m" not in state:
            state["step"] = torch.zeros(())
            state["m"], state["w"] = split(theta, beta)
        m, w = state["m"], state["w"]
        split_where_new(m, w, theta, beta)
        step = int(state["step"])
        if step and step % group["every"] == 0 and (group["until"] is None or step <= group["until"]):
            self._rescale(theta, state, group)
        change_m = self._direction(m, gradient * w, "momentum_m", state, group)
        change_w = self._direction(w, gradient * m, "momentum_w", state, group)
        m.sub_(group["lr"] * change_m)
        w.sub_(group["lr"] * change_w)
        theta.copy_(m * w)
        state["step"] += 1

    def _rescale(self, theta: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        after = split(theta, group["beta"])
        for key, before, now in zip(("momentum_w", "momentum_m"), (state["m"], state["w"]), after):
            if key in state:
                # By a factor that is zero nothing can be scaled, and nothing was gathered.
                scale = torch.where(before == 0, 0.0, now / before)
                state[key].mul_(scale if group["momentum_at_rescale"] == "rescale" else 0.0)
            before.copy_(now)

    def _direction(
        self, weight: Tensor, gradient: Tensor, key: str, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        """The gradient with decay and momentum, as torch's SGD has them."""
        if group["weight_decay"]:
            gradient = gradient + group["weight_decay"] * weight
        if not group["momentum"]:
            return gradient
        if key not in state:
            state[key] = torch.zeros_like(weight)
        moving: Tensor = state[key].mul_(group["momentum"]).add_(gradient)
        return moving
