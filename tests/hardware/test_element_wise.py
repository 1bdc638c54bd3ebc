"""What counts as element-wise keeps the strides of a feature-major tensor, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fused_backend import is_feature_major, to_feature_major
from torch import Tensor

from sparseflow.hardware.flow import ELEMENTWISE

STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda y: torch.ones(y.shape[-1]) + y,
    "clamp": lambda y: y.clamp(0, 1),
    "div": lambda y: y / 3,
    "leaky_relu": F.leaky_relu,
    "mul": lambda y: y * torch.sigmoid(y),
    "pow": lambda y: y**3,
    "rsub": lambda y: 1 - y,
    "sub": lambda y: F.relu(y) - y,
    "_to_copy": lambda y: y.double(),
    "alias": torch.ops.aten.alias,
    "clone": torch.clone,
    "detach": torch.detach,
    "dropout": lambda y: F.dropout(y, 0.5),
    "native_dropout": lambda y: torch.native_dropout(y, 0.5, True)[0],
    "bernoulli_": lambda y: torch.empty_like(y).bernoulli_(0.5),
    "empty_like": torch.empty_like,
    "celu": F.celu,
    "elu": F.elu,
    "gelu": F.gelu,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "mish": F.mish,
    "silu": F.silu,
    "softplus": F.softplus,
    "abs": torch.abs,
    "erf": torch.erf,
    "exp": torch.exp,
    "neg": torch.neg,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("shape", [(6, 7), (2, 3, 7)])
def test_element_wise_steps_keep_strides_forward_and_backward(shape: tuple[int, ...]) -> None:
    assert set(STEPS) == ELEMENTWISE | {"dropout"}
    for name, step in STEPS.items():
        x = _feature_major_rows(shape).requires_grad_()
        y = step(x)
        assert y.stride() == x.stride(), name
        if y.requires_grad:
            dy = _feature_major_rows(shape).to(y.dtype)
            assert torch.autograd.grad(y, x, dy)[0].stride() == x.stride(), name


def test_element_wise_steps_keep_images_stored_as_chwn() -> None:
    for name, step in STEPS.items():
        x = to_feature_major(torch.randn(3, 2, 5, 6)).requires_grad_()
        y = step(x)
        assert is_feature_major(y), name
        if y.requires_grad:
            dy = to_feature_major(torch.ones_like(y))
            assert is_feature_major(torch.autograd.grad(y, x, dy)[0]), name


def _feature_major_rows(shape: tuple[int, ...]) -> Tensor:
    return to_feature_major(torch.randn(6, 7)).view(shape)
