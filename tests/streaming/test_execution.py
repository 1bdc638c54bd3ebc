"""How a streamed model runs: what autograd keeps, what crosses the wire, and what is refused."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_reference import Masked, random_masks
from streamed_networks import NETWORKS, Network
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import sparseflow as sf
from sparseflow.hardware.streaming import buffers
from sparseflow.hardware.streaming.execution import Stream
from sparseflow.hardware.streaming.optimizer import StoreOptimizer
from sparseflow.testing import assert_close
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


def test_gradients_leave_before_backward_has_ended() -> None:
    model, _, stream = streamed(made(LENET))
    came: list[int] = []
    x = torch.randn(2, 64, requires_grad=True)
    x.register_hook(lambda gradient: came.append(len([m for m in stream.channel.messages if m.direction == "back"])))
    model(x).sum().backward()
    # Those of the two layers above: the first layer's has only now been computed.
    assert came == [4]
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


def test_read_ahead_changes_no_bits_and_no_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for worth in (0, 2**60):
        monkeypatch.setattr(buffers, "_WORTH_A_THREAD", worth)
        model, optimizer, stream = streamed(made(GPT))
        train(model, optimizer, GPT, 0, 1, 2)
        assert (stream.buffers._thread is None) == (worth > 0)
        found.append(([stream.read(name) for name in stream.names], stream.channel.totals))
    assert all(same_bits(a, b) for a, b in zip(found[0][0], found[1][0]))
    assert found[0][1] == found[1][1]


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


# State.


def test_state_dict_is_that_of_sparse_layers_and_loads_into_either(tmp_path: Path) -> None:
    plain = made(LENET)
    masks = random_masks(plain, 0.3)
    sparse = sf.sparsify(copy.deepcopy(plain), masks, backend="dense-compact")
    model, _, stream = streamed(plain, tmp_path, masks=masks)
    state = model.state_dict()
    assert {key: tuple(t.shape) for key, t in state.items()} == {
        key: tuple(t.shape) for key, t in sparse.state_dict().items()
    }
    assert all(same_bits(state[key], tensor) for key, tensor in sparse.state_dict().items())
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter.mul_(2)
    before = stream.read("fc1.weight")
    model.load_state_dict(sparse.state_dict())
    assert same_bits(stream.read("fc1.weight"), 2 * before)
    model.load_state_dict({name: torch.ones(p.shape) for name, p in model.named_parameters()})
    assert same_bits(stream.read("fc1.weight"), masks["fc1.weight"].float())


def test_state_dict_of_another_mask_brings_its_mask() -> None:
    one, _, there = streamed(made(LENET))
    masks = random_masks(made(LENET), 0.6)
    other, _, here = streamed(made(LENET), masks=masks)
    one.load_state_dict(other.state_dict())
    found = there.mask("fc1.weight")
    assert found is not None and torch.equal(found, masks["fc1.weight"])
    assert same_bits(there.read("fc1.weight"), here.read("fc1.weight"))


def test_state_dict_that_does_not_fit_says_what_does_not() -> None:
    model, _, _ = streamed(made(LENET))
    state = dict(model.state_dict())
    state["fc1.weight_values"] = state["fc1.weight_values"][1:]
    with pytest.raises(RuntimeError, match=r"fc1.weight: expected \d+ kept weights by its mask, got"):
        model.load_state_dict(state)
    del state["fc1.weight_values"]
    with pytest.raises(RuntimeError, match=r"Missing key.*fc1.weight"):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"fc1.bias: expected shape \(300,\), got \(3,\)"):
        model.load_state_dict({"fc1.bias": torch.ones(3)}, strict=False)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_optimizer_state_goes_to_another_store_and_training_goes_on(kind: str, tmp_path: Path) -> None:
    make_optimizer = partial(getattr(torch.optim, kind), lr=0.01, **({"momentum": 0.9} if kind == "SGD" else {}))
    one, optimizer, there = streamed(made(LENET), optimizer=make_optimizer)
    train(one, optimizer, LENET, 0, 1)
    other, again, here = streamed(made(LENET), tmp_path, optimizer=make_optimizer)
    other.load_state_dict(one.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    assert set(state["state"][0]) == {"step", *(["momentum_buffer"] if kind == "SGD" else ["exp_avg", "exp_avg_sq"])}
    again.load_state_dict(state)
    for model, one_optimizer in ((one, optimizer), (other, again)):
        train(model, one_optimizer, LENET, 2, 3)
    assert all(same_bits(here.read(name), there.read(name)) for name in here.names)


def test_a_store_is_gone_on_with_from_its_last_commit(tmp_path: Path) -> None:
    network = NETWORKS["resnet20"]
    whole, optimizer, expected = streamed(made(network))
    train(whole, optimizer, network, 0, 1, 2, 3)
    model, optimizer, stream = streamed(made(network), tmp_path)
    train(model, optimizer, network, 0, 1)
    stream.commit()
    train(model, optimizer, network, 17)
    stream.close()
    torch.manual_seed(99)
    model, optimizer, stream = streamed(network.make(), tmp_path)
    assert stream.store.step == 2
    train(model, optimizer, network, 2, 3)
    assert all(same_bits(stream.read(name), expected.read(name)) for name in expected.names)
    for (name, got), (_, buffer) in zip(model.named_buffers(), whole.named_buffers()):
        assert same_bits(got, buffer), name


def test_new_masks_keep_what_both_keep() -> None:
    model, optimizer, stream = streamed(made(LENET))
    train(model, optimizer, LENET, 0)
    before, old = stream.read("fc1.weight"), stream.mask("fc1.weight")
    new = torch.rand(before.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    stream.remask({"fc1.weight": new})
    assert same_bits(stream.read("fc1.weight"), torch.where(new, before, 0.0))
    train(model, optimizer, LENET, 1)
    assert old is not None and stream.store.nnz("fc1.weight") == int(new.sum())


# Models on the meta device.


def test_meta_model_is_initialised_one_module_at_a_time_as_in_memory(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))

    torch.manual_seed(5)
    expected = build()
    with torch.device("meta"):
        model = build()
    torch.manual_seed(5)
    masks = {"3.weight": torch.ones(2, 4, dtype=torch.bool)}
    model, _, stream = streamed(model, tmp_path, masks=masks)
    assert_same_weights(stream, expected)
    x = torch.randn(2, 1, 3, 3)
    assert same_bits(model(x).detach(), expected(x).detach())
    stream.commit()
    stream.close()
    with torch.device("meta"):
        again = build()
    again, _, stream = streamed(again, tmp_path, masks=masks)
    assert_same_weights(stream, expected)
    assert same_bits(again.eval()(x).detach(), expected.eval()(x).detach())


def test_meta_model_without_its_own_initialisation_needs_one() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.empty(3, device="meta"))

    with pytest.raises(ValueError, match=r"Own has no reset_parameters\(\); pass initialise="):
        streamed(Own(), masks={"w": torch.ones(3, dtype=torch.bool)})

    def ones(module: nn.Module) -> None:
        nn.init.ones_(module.w)  # type: ignore[arg-type]

    _, _, stream = streamed(Own(), masks={"w": torch.tensor([True, False, True])}, initialise=ones)
    assert stream.read("w").tolist() == [1, 0, 1]


def test_buffer_that_nobody_would_fill_is_named() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(3, device="meta"))

    model = nn.Sequential(nn.Linear(2, 2, device="meta"), Positions())
    with pytest.raises(ValueError, match="the buffer 'table' of '1' is on the meta device"):
        streamed(model)


# What is refused.


def lenet() -> tuple[nn.Module, StoreOptimizer, Stream]:
    return streamed(made(LENET))


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
    with pytest.raises(ValueError, match=r"another mask for 'fc1.weight', of \d+ kept weights"):
        streamed(made(LENET), tmp_path, masks=random_masks(made(LENET), 0.6))
