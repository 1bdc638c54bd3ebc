"""Training on sf.stream: the numbers of training in memory, resumed wherever it stopped, and nothing kept in memory."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from leavings import left_in
from searches import search, stop_after
from tiny_task import Net, differing, tiny_trainer
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.hardware.model import current_masks, dense_state, load_dense_state
from sparseflow.hardware.streaming.store import Store
from sparseflow.masks import dynamic, phases
from sparseflow.training.controls import train_control
from sparseflow.training.lottery import train_dynamic
from sparseflow.training.streaming import Streaming
from sparseflow.training.trainer import Stopped, Trainer

ADAMW = partial(torch.optim.AdamW, lr=0.01, fused=False, foreach=False)


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is most of the time here, and nothing here can tell."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def searched(stream: Streaming | None, backend: str, **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """What a search of two rounds has measured, and its weights at the end."""
    events: list[dict[str, Any]] = []
    trainer = tiny_trainer(stream=stream, listener=events.append, **changes)
    tickets = list(sf.imp(trainer, rounds=2, rate=0.5, floor=1, rewind_to=2, backend=backend))
    losses = [(event["step"], event["loss"], event["validation_loss"]) for event in events]
    measured = [
        {key: ticket.provenance["metrics"][key] for key in ("early_stop_step", "test_loss", "final_test_loss")}  # type: ignore[index]
        for ticket in tickets
    ]
    return [{"losses": losses, "digests": [ticket.digest for ticket in tickets]}, *measured], dense_state(trainer.model)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="SGD with momentum"),
        pytest.param({"optimizer": ADAMW, "weight_decay": 0.1}, id="AdamW with decay"),
        pytest.param({"accumulate": 2}, id="two micro-batches"),
    ],
)
def test_a_search_has_the_bits_of_one_on_dense(tmp_path: Path, changes: dict[str, Any]) -> None:
    measured, weights = searched(Streaming(tmp_path / "store", strict=True), "auto", **changes)
    expected, dense = searched(None, "dense", **changes)
    assert measured == expected
    assert differing(weights, dense) == []


def test_clipping_has_the_bits_of_one_that_keeps_the_same_values(tmp_path: Path) -> None:
    """A norm of the kept values alone: on `dense`, it is added up with zeros between them."""
    measured, weights = searched(Streaming(tmp_path / "store", spill=True), "stream", clip=0.5)
    expected, compact = searched(None, "dense-compact", clip=0.5)
    assert measured == expected
    assert differing(weights, compact) == []


def test_two_systems_do_what_two_micro_batches_do(tmp_path: Path) -> None:
    two = searched(Streaming(None, systems=2), "auto")
    expected = searched(Streaming(tmp_path / "store"), "auto", accumulate=2)
    assert two[0] == expected[0]
    assert differing(two[1], expected[1]) == []


@pytest.mark.usefixtures("no_sync")
def test_stopped_at_every_step(tmp_path: Path) -> None:
    def streamed(name: str) -> Trainer:
        return tiny_trainer(evaluate_every=3, stream=Streaming(tmp_path / f"{name}.store"))

    whole = streamed("whole")
    search(tmp_path / "whole", whole, backend="auto")
    stops = 0
    for _ in range(20):
        trainer = streamed("parts")
        trainer.should_stop = lambda: True
        try:
            search(tmp_path / "parts", trainer, backend="auto")
            break
        except Stopped:
            stops += 1
        finally:
            trainer.close()
    assert stops == 13
    assert left_in(tmp_path / "parts") == left_in(tmp_path / "whole")


@pytest.mark.usefixtures("no_sync")
def test_the_store_is_the_checkpoint(tmp_path: Path) -> None:
    trainer = tiny_trainer(evaluate_every=3, stream=Streaming(tmp_path / "store"))
    # In round 1, at a step that has no evaluation behind it.
    stop_after(trainer, 8)
    with pytest.raises(Stopped):
        search(tmp_path / "search", trainer, backend="auto")
    trainer.close()
    (checkpoint,) = (tmp_path / "search" / "round-01.training").glob("step-*/state.safetensors")
    assert not [name for name in sf.load(checkpoint).state if not name.startswith("best/")]  # type: ignore[union-attr]
    with Store.open(tmp_path / "store") as store:
        assert store.masked("fc1.weight") and store.steps("fc1.weight") > 0


@pytest.mark.usefixtures("no_sync")
def test_the_store_has_the_trained_weights_in_the_end(tmp_path: Path) -> None:
    trainer = tiny_trainer(stream=Streaming(tmp_path / "store"))
    search(tmp_path / "search", trainer, backend="auto")
    weights, masks = dense_state(trainer.model), current_masks(trainer.model)
    trainer.close()
    with Store.open(tmp_path / "store") as store:
        assert all(torch.equal(store.read(name), weights[name]) for name in store.names)
        assert all(torch.equal(store.mask(name), mask) for name, mask in masks.items())


@pytest.mark.parametrize("kind", ["reinit", "shuffle", "random"])
def test_a_control_has_the_bits_of_one_on_dense_and_gives_the_weights_back(kind: Any) -> None:
    found = []
    for stream in (Streaming(None), None):
        trainer = tiny_trainer(stream=stream)
        *_, ticket = sf.imp(trainer, rounds=1, rate=0.5, floor=1, backend="dense" if stream is None else "auto")
        before = dense_state(trainer.model)
        first = {**ticket.rewind, **dense_state(trainer.build())}
        found.append(train_control(trainer, ticket, kind, first))
        if stream is not None:
            assert differing(dense_state(trainer.model), before) == []
    assert found[0].test.loss == found[1].test.loss
    assert found[0].early_state.keys() >= {"fc1.weight_values", "fc1.weight_mask"}


@pytest.mark.parametrize(
    "method",
    [dynamic.SET(density=0.5, every=2, until=5), phases.ACDC(density=0.5, warm_up=2, phase=1, final=4)],
    ids=lambda method: type(method).__name__,
)
def test_masks_that_change_in_training(tmp_path: Path, method: dynamic.Dynamic) -> None:
    found = []
    for stream in (Streaming(tmp_path / "store"), None):
        trainer = tiny_trainer(stream=stream)
        tickets = list(train_dynamic(trainer, method, backend="dense" if stream is None else "auto"))
        found.append(([ticket.digest for ticket in tickets], dense_state(trainer.model)))
    (digests, weights), (expected, dense) = found
    assert digests == expected
    assert differing(weights, dense) == []


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which memory is a file's")
def test_what_is_kept_whole_is_in_files(tmp_path: Path) -> None:
    trainer = tiny_trainer(stream=Streaming(tmp_path / "store"))
    kept = {
        **dense_state(trainer.model),
        **{f"best {n}": t for n, t in trainer.train(trainer.model).early_state.items()},
    }
    assert all(mapped_from(tensor).startswith(str(tmp_path / "store")) for tensor in kept.values())
    # Off the disk with the last reference, whatever becomes of the process.
    assert not list((tmp_path / "store").glob("*.scratch"))


def mapped_from(tensor: Tensor) -> str:
    """The file that a tensor's memory is a map of, or nothing."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5) if line.count(" ") >= 5 else (*line.split(), "")
        start, stop = (int(number, 16) for number in span.split("-"))
        if start <= tensor.data_ptr() < stop:
            return path.strip()
    raise AssertionError("a tensor without memory")


def test_the_verbs_act_on_the_store() -> None:
    torch.manual_seed(0)
    model = Net()
    reference = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model, _ = sf.stream(model, torch.optim.SGD(model.parameters(), lr=0.1), None)  # type: ignore[assignment]
    masks = sf.prune(model, density=0.4)
    assert masks == sf.prune(unstreamed(reference), density=0.4)
    plan = sf.plan(model, masks, torch.randn(5, 8))
    assert set(plan.backends.values()) == {"stream"} and "modelled" in str(plan)
    assert sf.sparsify(model, masks, plan=plan) is model
    assert all(torch.equal(mask, masks[name]) for name, mask in current_masks(model).items())
    fewer = sf.prune(model, rate=0.5, floor=1)
    sf.remask(model, fewer)
    kept = reference["fc1.weight"] * fewer["fc1.weight"]
    assert torch.equal(dense_state(model)["fc1.weight"], kept)
    sf.densify(model)
    assert current_masks(model) == {} and torch.equal(dense_state(model)["fc1.weight"], kept)
    load_dense_state(model, reference)
    assert differing(dense_state(model), reference) == []


def unstreamed(state: dict[str, Tensor]) -> nn.Module:
    model = Net()
    model.load_state_dict(state)
    return model


def test_what_cannot_be_streamed_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clip: the global norm .* spill=True"):
        tiny_trainer(clip=1.0, stream=Streaming(None))
    trainer = tiny_trainer(stream=Streaming(tmp_path / "store"))
    with pytest.raises(ValueError, match="backend 'dense' cannot run a streamed model"):
        list(sf.imp(trainer, rounds=1, rate=0.5, floor=1, backend="dense"))
    with pytest.raises(ValueError, match="is open already"):
        tiny_trainer(stream=Streaming(tmp_path / "store"))
    with pytest.raises(ValueError, match="RigL needs the gradients of pruned weights"):
        list(train_dynamic(tiny_trainer(stream=Streaming(None)), dynamic.RigL(density=0.5, every=2, until=5)))
