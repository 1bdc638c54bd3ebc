"""Any model made of torch modules trains from a store, to the bits of masked training in memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from masked_reference import Masked, random_masks
from streamed_networks import NETWORKS

from sparseflow.hardware.streaming.model import stream, stream_of
from sparseflow.testing.closeness import same_bits

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True, foreach=False),
    "AdamW": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, foreach=False),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_ten_steps_are_those_of_masked_training(network: str, optimizer: str, tmp_path: Path) -> None:
    kind, make_optimizer = NETWORKS[network], OPTIMIZERS[optimizer]
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(kind.make())
    plain, model = models
    masks = random_masks(plain, 0.3)
    reference = Masked(plain, masks, make_optimizer)
    # As tiles from the disk, where every payload is checked, and used where it lies in memory.
    place, strict = (tmp_path, True) if optimizer == "SGD" else (None, False)
    model, mine = stream(model, make_optimizer(model.parameters()), place, masks, strict=strict)
    for number in range(10):
        (expected,) = reference.step([lambda model, number=number: kind.loss(model, number)])
        loss = kind.loss(model, number)
        loss.backward()
        mine.step()
        assert same_bits(loss.detach(), expected), number
    streamed = stream_of(model)
    assert streamed is not None
    for name, parameter in plain.named_parameters():
        assert same_bits(streamed.read(name), parameter.detach()), name
    for (name, expected), (_, got) in zip(plain.named_buffers(), model.named_buffers()):
        assert same_bits(got, expected), name
