"""How a streamed model runs: what autograd keeps, what crosses the wire, and which gradients go where."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from masked_reference import Masked, random_masks
from streamed_networks import NETWORKS, Network
from streaming_setup import GPT, LENET, SGD, assert_same_weights, made, streamed, train
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import sparseflow as sf
from sparseflow.hardware.streaming import buffers
from sparseflow.testing import assert_close
from sparseflow.testing.closeness import same_bits


@pytest.fixture
def loans(monkeypatch: pytest.MonkeyPatch) -> list[StorageWeakRef]:
    """Every storage under which a buffer was lent."""
    found: list[StorageWeakRef] = []
    lend = buffers.Buffers.lend

    def watched(self: buffers.Buffers, unit: str) -> Tensor:
        flat = lend(self, unit)
        found.append(StorageWeakRef(flat.untyped_storage()))
        return flat

    monkeypatch.setattr(buffers.Buffers, "lend", watched)
    return found


@pytest.mark.parametrize("network", ["lenet", "resnet20", "gpt, tied", "GPT-2", "Llama", "attention", "LSTM"])
def test_autograd_keeps_no_weight(network: str, loans: list[StorageWeakRef]) -> None:
    model, _, _ = streamed(made(NETWORKS[network]))
    loss = NETWORKS[network].loss(model, 0)
    assert loans and all(loan.expired() for loan in loans)
    forward = len(loans)
    loss.backward()
    assert len(loans) > forward and all(loan.expired() for loan in loans)


def test_every_large_tensor_between_forward_and_backward_is_an_activation() -> None:
    model, _, _ = streamed(made(LENET))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        loss = LENET.loss(model, 0)
    # Ours are the inner hooks: what comes out to others is the loss function's alone.
    assert {tuple(t.shape) for t in kept} == {(4, 5), (4,), ()}
    assert loss.requires_grad


def test_gradient_stream_has_the_kept_values_and_weights_leave_as_tiles(tmp_path: Path) -> None:
    model, optimizer, stream = streamed(made(LENET), tmp_path, strict=True)
    train(model, optimizer, LENET, 0)
    sent = {(m.name, m.phase, m.direction): m.nbytes for m in stream.sent}
    assert len(sent) == len(stream.sent)
    for name in stream.names:
        tiles = stream.store.parameter(name).tiles
        assert sent[name, "forward", "out"] == sum(tile.wire_bytes(4) for tile in tiles), name
        assert sent[name, "backward", "back"] == 4 * stream.store.nnz(name), name
    # The first layer's input needs no gradient, so that backward does not need its weight.
    assert {name for name, phase, way in sent if (phase, way) == ("backward", "out")} == {
        "fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"
    }  # fmt: skip


@pytest.mark.parametrize("in_memory", [True, False])
def test_gradients_leave_before_backward_has_ended(in_memory: bool, tmp_path: Path) -> None:
    model, _, stream = streamed(made(LENET), None if in_memory else tmp_path)
    came: list[int] = []
    x = torch.randn(2, 64, requires_grad=True)
    x.register_hook(lambda gradient: came.append(len([m for m in stream.channel.messages if m.direction == "back"])))
    model(x).sum().backward()
    # Those of the two layers above: the first layer's have only now been computed. A bias that is used where it lies
    # is a leaf of the graph, which autograd visits before anything else.
    assert came == [5 if in_memory else 4]
    assert len([m for m in stream.channel.messages if m.direction == "back"]) == 6


def test_evaluation_is_not_counted_and_leaves_no_graph() -> None:
    model, _, stream = streamed(made(LENET))
    with torch.no_grad():
        assert not LENET.loss(model, 0).requires_grad
    assert not stream.channel.messages


def test_evaluation_of_attention_reads_one_module_at_a_time() -> None:
    plain, model = (made(NETWORKS["encoder layer"]).eval() for _ in range(2))
    masks = random_masks(plain, 0.5)
    Masked(plain, masks, SGD)
    model, _, _ = streamed(model, masks=masks)
    fast = torch.backends.mha.get_fastpath_enabled()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        assert_close(model(x), plain(x))
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_read_ahead_and_a_store_in_memory_change_no_bits_and_no_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    # With a thread, without one, and with the weights used where they lie in memory.
    for worth, place in ((0, tmp_path / "ahead"), (2**60, tmp_path / "later"), (0, None)):
        monkeypatch.setattr(buffers, "_WORTH_A_THREAD", worth)
        model, optimizer, stream = streamed(made(GPT), place)
        train(model, optimizer, GPT, 0, 1, 2)
        assert (stream.buffers._thread is None) == (worth > 0 or place is None)
        bits, traffic = [stream.read(name) for name in stream.names], stream.store.traffic
        found.append((bits, stream.channel.totals, Counter(stream.sent), traffic.read, traffic.written))
    for other in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(found[0][0], other[0]))
        assert found[0][1:] == other[1:]


def test_weights_that_lie_in_memory_are_used_there_and_no_others() -> None:
    model, _, stream = streamed(made(LENET))
    seen: dict[str, int] = {}
    for name, module in (("fc1", model.fc1), ("fc2", model.fc2)):
        assert isinstance(module, nn.Linear)
        module.register_forward_hook(
            lambda module, *_, name=name: seen.update(
                {f"{name}.{key}": getattr(module, key).data_ptr() for key in ("weight", "bias")}
            )
        )
    LENET.loss(model, 0)
    lies = {name: stream.store.values(name).data_ptr() == address for name, address in seen.items()}
    assert lies == {"fc1.weight": False, "fc1.bias": True, "fc2.weight": False, "fc2.bias": True}
    stream.densify()
    LENET.loss(model, 0)
    assert all(stream.store.values(name).data_ptr() == address for name, address in seen.items())


def test_a_gradient_cannot_be_differentiated() -> None:
    model, _, _ = streamed(made(LENET))
    with pytest.raises(RuntimeError, match="leave create_graph out"):
        LENET.loss(model, 0).backward(create_graph=True)


def test_learning_rate_follows_a_scheduler() -> None:
    plain, model = made(LENET), made(LENET)
    masks = random_masks(plain, 0.3)
    reference = Masked(plain, masks, SGD)
    model, optimizer, stream = streamed(model, masks=masks)
    schedules = [torch.optim.lr_scheduler.StepLR(one, 1, 0.5) for one in (reference.optimizer, optimizer)]
    for number in range(3):
        reference.step([partial(LENET.loss, number=number)])
        train(model, optimizer, LENET, number)
        for schedule in schedules:
            schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.1 / 8
    assert_same_weights(stream, plain)


@pytest.mark.parametrize("before", [True, False])
def test_a_weight_used_outside_of_forward_gets_that_gradient_too(before: bool) -> None:
    plain, model = made(LENET), made(LENET)
    masks = random_masks(plain, 0.3)
    reference = Masked(plain, masks, SGD)
    model, optimizer, stream = streamed(model, masks=masks)

    def loss(model: nn.Module) -> Tensor:
        found = None if before else LENET.loss(model, 0)
        weight = model.fc2.weight
        assert isinstance(weight, Tensor)
        return 0.1 * weight.square().sum() + (LENET.loss(model, 0) if found is None else found)

    for _ in range(2):
        (expected,) = reference.step([loss])
        got = loss(model)
        got.backward()
        optimizer.step()
        assert same_bits(got.detach(), expected)
    assert_same_weights(stream, plain)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(checkpoint(self.first, x, use_reentrant=False))
        return y


def test_checkpointed_activations_are_computed_anew() -> None:
    network = Network(Checkpointed, lambda model, number: model(torch.full((3, 8), 0.5)).square().mean())
    plain, model = made(network), made(network)
    masks = random_masks(plain, 0.5)
    reference = Masked(plain, masks, SGD)
    model, optimizer, stream = streamed(model, masks=masks)
    for number in range(3):
        reference.step([partial(network.loss, number=number)])
        train(model, optimizer, network, number)
    assert_same_weights(stream, plain)


def test_frozen_parameters_stay_and_cost_no_gradient() -> None:
    plain, model = made(LENET), made(LENET)
    for one in (plain, model):
        one.fc2.requires_grad_(False)
    masks = random_masks(plain, 0.3)
    reference = Masked(plain, masks, SGD)
    model, optimizer, stream = streamed(model, masks=masks)
    reference.step([partial(LENET.loss, number=0)])
    train(model, optimizer, LENET, 0)
    assert_same_weights(stream, plain)
    assert not [m for m in stream.sent if m.direction == "back" and m.name.startswith("fc2")]
    dict(model.named_parameters())["fc1.weight"].requires_grad_(False)
    train(model, optimizer, LENET, 1)
    assert not [m for m in stream.sent if m.direction == "back" and m.name == "fc1.weight"]


def test_parameters_of_no_optimizer_stay() -> None:
    plain, model = made(LENET), made(LENET)
    last = [plain.fc3.weight, plain.fc3.bias]
    optimizer = SGD(last)
    LENET.loss(plain, 0).backward()
    optimizer.step()
    stored, mine = sf.stream(model, SGD([model.fc3.weight, model.fc3.bias]), None)
    stream = sf.stream_of(stored)
    assert stream is not None
    train(stored, mine, LENET, 0)
    assert_same_weights(stream, plain)
    assert {message.name for message in stream.sent if message.direction == "back"} == {"fc3.weight", "fc3.bias"}
