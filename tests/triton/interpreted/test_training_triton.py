"""Training through the Triton kernels, interpreted, against the backend `dense`: the same losses, to tolerance."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sparseflow as sf
from sparseflow import models
from sparseflow.testing import TOLERANCE, relative_error

STEPS = 10


def tiny_gpt() -> tuple[nn.Module, Tensor, Tensor]:
    model = models.gpt(vocabulary=11, context=6, layers=1, heads=2, width=16)
    tokens = torch.randint(11, (3, 7))
    return model, tokens[:, :-1], tokens[:, 1:].reshape(-1)


def tiny_resnet() -> tuple[nn.Module, Tensor, Tensor]:
    return models.resnet20(classes=3, width=2), torch.randn(4, 1, 3, 3), torch.randint(3, (4,))


def losses(model: nn.Module, x: Tensor, target: Tensor, autocast: bool) -> list[float]:
    # Not Adam, which divides differences of rounding by gradients that are nearly zero.
    optimizer = torch.optim.SGD(sf.param_groups(model, weight_decay=0.01), lr=0.1, momentum=0.9)
    found = []
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(x).flatten(0, -2)
        loss = nn.functional.cross_entropy(logits.float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("build, autocast", [(tiny_gpt, False), (tiny_gpt, True), (tiny_resnet, False)])
def test_ten_steps_have_the_losses_of_dense(
    build: Callable[[], tuple[nn.Module, Tensor, Tensor]], autocast: bool
) -> None:
    torch.manual_seed(0)
    model, x, target = build()
    masks = sf.prune(model, density=0.1, allocation="uniform")
    found = {}
    for backend in ("dense", "triton"):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            plan = sf.plan(model, masks, x, backend=backend)
        assert set(plan.backends.values()) == {backend}
        sparse = sf.sparsify(copy.deepcopy(model), masks, plan=plan)
        found[backend] = losses(sparse, x, target, autocast)
    dense, triton = (torch.tensor(found[backend]) for backend in ("dense", "triton"))
    assert dense[-1] < 0.9 * dense[0]
    assert relative_error(triton, dense) <= TOLERANCE[torch.bfloat16 if autocast else torch.float32]
