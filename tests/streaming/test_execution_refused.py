"""What a streamed model refuses, and what it says then."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_reference import random_masks
from streamed_networks import NETWORKS
from streaming_setup import LENET, SGD, lenet, made, streamed, train
from torch import Tensor, nn

import sparseflow as sf


def test_copies_and_moves_are_refused_with_the_reason() -> None:
    model, _, _ = lenet()
    for copied in (model, model.fc1):
        with pytest.raises(TypeError, match=r"a streamed (LeNet|Linear) cannot be copied: its weights lie in a store"):
            copy.deepcopy(copied)
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(copied)
    with pytest.raises(ValueError, match=r"stay float32 in its store.*format="):
        model.half()
    with pytest.raises(AttributeError, match=r"'weight' of 'fc1' lives in a store.*write\('fc1.weight', tensor\)"):
        model.fc1.weight = nn.Parameter(torch.zeros(300, 64))
    assert model.to("cpu") is model
    assert isinstance(model.fc1, nn.Linear) and next(model.parameters()).is_meta


def test_clearing_and_clipping_and_reading_gradients_that_are_gone_is_refused() -> None:
    model, optimizer, _ = lenet()
    LENET.loss(model, 0).backward()
    with pytest.raises(ValueError, match=r"clip with optimizer.clip_grad_norm_\(max_norm\)"):
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with pytest.raises(ValueError, match="spill=True"):
        optimizer.clip_grad_norm_(1.0)
    with pytest.raises(ValueError, match=r"in the store already: call step\(\) after backward"):
        optimizer.zero_grad()
    optimizer.step()
    optimizer.zero_grad()
    model.zero_grad()


def test_a_second_backward_before_the_step_is_refused() -> None:
    model, _, _ = lenet()
    first, second = LENET.loss(model, 0), LENET.loss(model, 1)
    first.backward()
    with pytest.raises(ValueError, match=r"came for pass 2 of a step that has 1.*micro_batches="):
        second.backward()


def test_backward_of_weights_that_are_gone_is_refused() -> None:
    model, optimizer, stream = lenet()
    loss = LENET.loss(model, 0)
    train(model, optimizer, LENET, 1)
    with pytest.raises(RuntimeError, match="backward of a forward whose weights are gone: 'fc3"):
        loss.backward()
    loss = LENET.loss(model, 0)
    stream.write("fc1.weight", torch.zeros(300, 64))
    with pytest.raises(RuntimeError, match="was updated or written since"):
        loss.backward()


class UsedTwice(nn.Module):
    """Its weight without a gradient comes first, so that backward needs it last."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(torch.tanh(x @ self.fc.weight.detach()))
        return y


@pytest.mark.parametrize("density", [0.5, 1.0])
@pytest.mark.parametrize("in_memory", [True, False])
def test_backward_of_a_weight_that_has_changed_on_the_way_is_refused(
    density: float, in_memory: bool, tmp_path: Path
) -> None:
    masks = {"fc.weight": torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) < density}
    x = torch.randn(3, 4, requires_grad=True)
    model, _, _ = streamed(UsedTwice(), None if in_memory else tmp_path / "store", masks=masks)
    with pytest.raises(RuntimeError, match=r"asks for 'fc.weight' after its gradient came.*spill=True"):
        model(x).sum().backward()
    model, optimizer, _ = streamed(UsedTwice(), None if in_memory else tmp_path / "spilled", masks=masks, spill=True)
    model(x).sum().backward()
    optimizer.step()


def test_activation_changed_in_place_is_noticed() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            z: Tensor = y.square()
            y.add_(1)
            return z

    model, _, _ = streamed(InPlace())
    with pytest.raises(RuntimeError, match="changed in place after the forward"):
        model(torch.randn(2, 4)).sum().backward()


def test_a_third_weight_at_once_is_named() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            weights = [self.a.weight, self.b.weight, self.c.weight]
            return x @ weights[0] @ weights[1] @ weights[2]

    model, _, _ = streamed(Three())
    with pytest.raises(RuntimeError, match="'c' are asked for while those of 'a' and 'b' are still in use"):
        model(torch.randn(2, 4))


def test_autocast_is_refused() -> None:
    model, _, _ = lenet()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="format='bf16'"):
        LENET.loss(model, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buffer_limit": 1000}, r"'fc2' \(Linear\) needs a buffer of \d+ bytes, and buffer_limit is 1000"),
        ({"masks": {"fc1.wieght": torch.ones(1)}}, r"'fc1.wieght' names no parameter.*fc1.weight"),
        ({"masks": {"fc1.weight": torch.ones(3, 3)}}, r"expected a bool tensor.*shape \(300, 64\), got"),
        ({"format": "fp8"}, "no format 'fp8'; available: fp32, fp16, bf16, cb16"),
        ({"format": "cb16"}, "pass spill=True"),
        ({"micro_batches": 0}, "at least one system and one micro-batch"),
        ({"optimizer": torch.optim.RMSprop}, "a store cannot run RMSprop; it can run SGD"),
        ({"optimizer": partial(torch.optim.Adam, amsgrad=True)}, "amsgrad=True"),
        ({"optimizer": lambda _: SGD([torch.zeros(1)])}, "holds none of its parameters"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        streamed(made(LENET), **options)


def test_models_that_cannot_be_streamed_are_named() -> None:
    with pytest.raises(ValueError, match="expected a model with parameters"):
        sf.stream(nn.ReLU(), SGD([torch.zeros(1)]), None)
    with pytest.raises(ValueError, match=r"'weight': expected torch.float32, got torch.float64"):
        streamed(nn.Linear(3, 3).double())
    model, optimizer, _ = lenet()
    with pytest.raises(ValueError, match="is streamed already"):
        sf.stream(model, optimizer, None)
    sparse = sf.sparsify(made(LENET), random_masks(made(LENET), 0.3), backend="dense")
    with pytest.raises(ValueError, match="'fc1' is a SparseLayer"):
        sf.stream(sparse, SGD(sparse.parameters()), None)
    tied = made(NETWORKS["gpt, tied"])
    with pytest.raises(ValueError, match=r"'head.weight'.*it is tied to 'tokens.weight'"):
        streamed(tied, masks={"head.weight": torch.ones(17, 16, dtype=torch.bool)})


def test_optimizers_with_a_past_or_a_closure_are_refused() -> None:
    model = made(LENET)
    optimizer = SGD(model.parameters())
    LENET.loss(model, 0).backward()
    optimizer.step()
    with pytest.raises(ValueError, match="has not stepped yet"):
        sf.stream(model, optimizer, None)
    _, mine, _ = lenet()
    with pytest.raises(ValueError, match="takes no closure"):
        mine.step(lambda: 0.0)


def test_a_store_with_other_masks_is_refused(tmp_path: Path) -> None:
    _, _, stream = streamed(made(LENET), tmp_path)
    stream.close()
    adam = partial(torch.optim.Adam, lr=0.1)
    with pytest.raises(
        ValueError, match=r"keeps the optimizer state \('momentum',\).*needs \('exp_avg', 'exp_avg_sq'\)"
    ):
        streamed(made(LENET), tmp_path, optimizer=adam)
    with pytest.raises(ValueError, match=r"another mask for 'fc1.weight', of \d+ kept weights"):
        streamed(made(LENET), tmp_path, masks=random_masks(made(LENET), 0.6))
