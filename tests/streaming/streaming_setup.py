"""Models as the tests of streaming make, stream and train them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from masked_reference import random_masks
from streamed_networks import NETWORKS, Network
from torch import nn

import sparseflow as sf
from sparseflow.hardware.streaming.execution import Stream
from sparseflow.hardware.streaming.optimizer import StoreOptimizer
from sparseflow.testing.closeness import same_bits

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=False)
LENET, GPT = NETWORKS["lenet"], NETWORKS["gpt"]


def made(network: Network) -> nn.Module:
    torch.manual_seed(3)
    return network.make()


def streamed(model: nn.Module, store: Path | None = None, **options: Any) -> tuple[nn.Module, StoreOptimizer, Stream]:
    make_optimizer = options.pop("optimizer", SGD)
    masks = options.pop("masks", None) or random_masks(model, 0.3)
    model, optimizer = sf.stream(model, make_optimizer(model.parameters()), store, masks, **options)
    stream = sf.stream_of(model)
    assert stream is not None
    return model, optimizer, stream


def train(model: nn.Module, optimizer: torch.optim.Optimizer, network: Network, *numbers: int) -> None:
    for number in numbers:
        network.loss(model, number).backward()
        optimizer.step()


def assert_same_weights(stream: Stream, plain: nn.Module) -> None:
    for name, parameter in plain.named_parameters():
        assert same_bits(stream.read(name), parameter.detach()), name


def lenet() -> tuple[nn.Module, StoreOptimizer, Stream]:
    return streamed(made(LENET))
