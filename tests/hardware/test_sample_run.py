from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparseflow.hardware.sample import Seen, observe


class Noisy(nn.Module):
    """Draws from all RNGs, counts its calls in buffers both in place and anew, and fails when told to."""

    count: Tensor
    fresh: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.drop = nn.Dropout()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("fresh", torch.zeros(()))
        self.register_buffer("late", None)
        self.fail = False

    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
        random.random(), np.random.rand(), torch.rand(1)
        self.count += 1
        self.fresh = self.fresh + 1
        self.late = torch.ones(1)
        if self.fail:
            raise RuntimeError("told to")
        y = self.norm(self.drop(self.fc(x)))
        return self.fc(y) if twice else y


def look(model: Noisy, sample: Any) -> Seen:
    return observe(model, sample, {"fc.weight": ("linear", [model.fc])})["fc.weight"]


@pytest.mark.parametrize("fail", [False, True])
def test_rngs_buffers_modes_and_gradients_stay(fail: bool) -> None:
    model = Noisy()
    model.norm.eval()
    model.fail = fail
    fresh = model.fresh
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    if fail:
        with pytest.raises(RuntimeError, match="told to"):
            look(model, x)
    else:
        look(model, x)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), repr(np.random.get_state())) == states[1:]
    assert model.training and model.drop.training and not model.norm.training
    assert model.fresh is fresh and model.late is None
    assert {name: buffer.tolist() for name, buffer in model.named_buffers()} == {
        k: v.tolist() for k, v in before.items()
    }
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.fc._forward_pre_hooks


def test_it_runs_in_eval_mode_without_dropout() -> None:
    model = Noisy()
    seen = []
    model.drop.register_forward_hook(lambda module, inputs, y: seen.append(module.training))
    look(model, torch.randn(3, 4))
    assert seen == [False]


def test_samples_are_tensors_tuples_or_dicts_and_rows_are_summed() -> None:
    model = Noisy()
    assert look(model, torch.randn(3, 4)).rows == 3
    assert look(model, (torch.randn(3, 4),)).rows == 3
    assert look(model, {"x": torch.randn(3, 4), "twice": True}).rows == 6


def test_autocast_of_the_caller_is_seen() -> None:
    model = Noisy()
    assert look(model, torch.randn(3, 4)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert look(model, torch.randn(3, 4)).dtype == torch.bfloat16
    model.double()
    assert look(model, torch.randn(3, 4, dtype=torch.float64)).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert look(model, torch.randn(3, 4, dtype=torch.float64)).dtype == torch.float64


def test_dx_is_needed_behind_a_trained_layer_also_under_no_grad() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(1, 1, 1), nn.Linear(4, 4))
    kinds: Any = {"0": ("linear", [model[0]]), "1": ("conv2d", [model[1]]), "2": ("linear", [model[2]])}
    with torch.no_grad():
        seen = observe(model, torch.randn(1, 3, 4), kinds)
    assert [one.needs_dx for one in seen.values()] == [False, True, True]
    assert [one.rows for one in seen.values()] == [3, 1, 3]
    assert seen["1"].image == (3, 4)


def test_a_layer_called_with_a_keyword_is_seen() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=x)

    model = Keyword()
    assert observe(model, torch.randn(3, 4), {"fc": ("linear", [model.fc])})["fc"].rows == 3
