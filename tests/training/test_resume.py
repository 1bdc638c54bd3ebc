"""A search that is stopped or killed anywhere, and goes on, leaves what one leaves that ran through."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import Net, differing, tiny_trainer

import sparseflow as sf
from sparseflow.files import FileMissingError, SparseFormatError, Ticket, Weights, load, save
from sparseflow.hardware.model import dense_state
from sparseflow.training.progress import Progress, restore_optimizer
from sparseflow.training.records import Records
from sparseflow.training.trainer import Stopped, Trainer

ADAM = partial(torch.optim.Adam, lr=0.01, fused=True)
TIMES = ("seconds", "step_seconds")


def search(folder: Path, trainer: Trainer | None = None, **changes: Any) -> list[Ticket]:
    """Two rounds, rewound to step 2, evaluated first at step 3: the first stops come before there is a best step."""
    trainer = trainer or tiny_trainer(evaluate_every=3)
    arguments: dict[str, Any] = {"rounds": 2, "rate": 0.5, "floor": 1, "rewind_to": 2, "backend": "dense-compact"}
    return list(sf.imp(trainer, records=Records(folder), **{**arguments, **changes}))


def left_in(folder: Path) -> dict[str, object]:
    """What lies in a folder, without times and without the order of bytes in containers."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "MANIFEST.json")
    return {path.relative_to(folder).as_posix(): _content(path) for path in files}


def _content(path: Path) -> object:
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix != ".safetensors":
        return path.read_bytes()
    found = load(path)
    if isinstance(found, Ticket):
        return found.digest, _timeless(found.provenance), found.plan
    return {name: tensor.numpy().tobytes() for name, tensor in found.state.items()}, found.masks.digest


def _timeless(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _timeless(value) for key, value in found.items() if key not in TIMES}
    return found


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is most of the time here, and nothing here can tell."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    search(folder)
    return left_in(folder)


def test_a_search_leaves_its_records(uninterrupted: dict[str, object]) -> None:
    rounds = [f"round-{index:02}/{what}" for index in range(3) for what in ("metrics.json", "scores.npy")]
    tickets = [f"round-{index:02}/ticket.safetensors" for index in range(3)]
    newest = [
        f"round-{index:02}.weights/{what}.safetensors" for index in (1, 2) for what in ("trained", "early", "rewind")
    ]
    plans = ["plan-01/plan.json", "plan-02/plan.json"]
    assert sorted(uninterrupted) == sorted([*rounds, *tickets, *newest, *plans, "rewind/rewind.safetensors"])


def test_stopped_at_every_step(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    stops = 0
    for _ in range(20):
        trainer = tiny_trainer(evaluate_every=3)
        trainer.should_stop = lambda: True
        try:
            search(tmp_path, trainer)
            break
        except Stopped:
            stops += 1
    # 6 + 4 + 4 steps; the last step of a training ends it, and a stop between rounds is one more.
    assert stops == 13
    assert left_in(tmp_path) == uninterrupted


@pytest.mark.parametrize("optimizer", [ADAM, partial(torch.optim.SGD, lr=0.1), partial(torch.optim.NAdam, lr=0.01)])
def test_stopped_in_a_sparse_round_with_other_optimizers(tmp_path: Path, optimizer: Callable[..., Any]) -> None:
    whole = search(tmp_path / "whole", tiny_trainer(optimizer=optimizer))
    trainer = tiny_trainer(optimizer=optimizer)
    stop_after(trainer, 8)
    with pytest.raises(Stopped):
        search(tmp_path / "parts", trainer)
    resumed = search(tmp_path / "parts", tiny_trainer(optimizer=optimizer))
    assert [ticket.digest for ticket in resumed] == [ticket.digest for ticket in whole]
    assert left_in(tmp_path / "parts") == left_in(tmp_path / "whole")


def stop_after(trainer: Trainer, steps: int) -> None:
    """Has the trainer stop when it has asked this often whether to."""
    asked = iter(range(1000))
    trainer.should_stop = lambda: next(asked) >= steps


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_at_write(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, writes = os.replace, iter(range(1000))

    def write(source: Any, target: Any) -> None:
        if next(writes) == number:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", write)


@pytest.mark.parametrize("number", range(22))
def test_killed_at_any_write(
    tmp_path: Path, uninterrupted: dict[str, object], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    # Every evaluation writes progress.
    monkeypatch.setattr(Progress, "due", lambda self: True)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killed_at_write(number, patched)
        search(tmp_path)
    search(tmp_path)
    assert left_in(tmp_path) == uninterrupted


def test_a_finished_search_is_read_not_run(tmp_path: Path) -> None:
    first = search(tmp_path)
    steps: list[int] = []
    again = search(tmp_path, tiny_trainer(listener=lambda event: steps.append(event["step"])))
    assert [ticket.digest for ticket in again] == [ticket.digest for ticket in first]
    assert steps == []


@pytest.fixture
def stopped_in_round_1(tmp_path: Path) -> Path:
    trainer = tiny_trainer(evaluate_every=3)
    stop_after(trainer, 8)
    with pytest.raises(Stopped):
        search(tmp_path, trainer)
    assert (tmp_path / "round-01.progress.safetensors").exists()
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "round-01.progress.safetensors",
        "round-00.trained.safetensors",
        "round-00.ticket.safetensors",
        "rewind.safetensors",
    ],
)
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_is_named(stopped_in_round_1: Path, name: str, damage: str) -> None:
    path = stopped_in_round_1 / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content[:-9] if damage == "cut" else content)
    with pytest.raises(SparseFormatError, match=name):
        search(stopped_in_round_1)


def test_a_missing_file_is_named(stopped_in_round_1: Path) -> None:
    (stopped_in_round_1 / "round-00.trained.safetensors").unlink()
    with pytest.raises(FileMissingError, match=r"round-00\.trained\.safetensors"):
        search(stopped_in_round_1)


@pytest.mark.parametrize("name", ["round-01.plan.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_damaged_json_is_named(stopped_in_round_1: Path, name: str, content: str) -> None:
    (stopped_in_round_1 / name).write_text(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        search(stopped_in_round_1)


def test_a_ticket_and_weights_are_not_taken_for_each_other(stopped_in_round_1: Path) -> None:
    ticket, weights = (stopped_in_round_1 / f"round-00.{what}.safetensors" for what in ("ticket", "trained"))
    content = weights.read_bytes()
    weights.write_bytes(ticket.read_bytes())
    with pytest.raises(ValueError, match=r"round-00\.trained\.safetensors: expected weights, got a ticket"):
        search(stopped_in_round_1)
    ticket.write_bytes(content)
    with pytest.raises(ValueError, match=r"round-00\.ticket\.safetensors: expected a ticket, got weights"):
        search(stopped_in_round_1)


def test_progress_of_another_run_is_refused(stopped_in_round_1: Path) -> None:
    with pytest.raises(ValueError, match="belongs to another run"):
        search(stopped_in_round_1, tiny_trainer(evaluate_every=3, seed=2))


def test_a_plan_for_a_backend_that_is_gone_names_replan(stopped_in_round_1: Path) -> None:
    path = stopped_in_round_1 / "round-01.plan.json"
    path.write_text(path.read_text().replace('"dense-compact"', '"cuda-2"'))
    with pytest.raises(ValueError, match=r"round 1 was planned for backend cuda-2.*--replan"):
        search(stopped_in_round_1)
    records = Records(stopped_in_round_1)
    records.forget_plans()
    assert records.plan(1) is None
    search(stopped_in_round_1)


def test_progress_is_canonical(tmp_path: Path) -> None:
    """What one backend has reached, another takes up: nothing of a native order is in the file."""
    for backend in ("dense", "dense-compact"):
        trainer = tiny_trainer(optimizer=ADAM)
        stop_after(trainer, 8)
        with pytest.raises(Stopped):
            search(tmp_path / backend, trainer, backend=backend)
    files = [load(tmp_path / backend / "round-01.progress.safetensors") for backend in ("dense", "dense-compact")]
    first, second = (file.state for file in files if isinstance(file, Weights))
    assert first["optimizer/fc1.weight/exp_avg"].shape == (16, 8)
    assert differing(first, second) == []


def test_progress_keeps_what_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "progress.safetensors"
    model = torch.nn.Linear(2, 2)
    progress = Progress(path, {"round": 1}, every_seconds=0)
    assert progress.saved is None and progress.due()
    progress.save(model, {"best": torch.ones(1)}, {"a/b": torch.zeros(2)}, {"step": 3, "best_loss": None})
    saved = Progress(path, {"round": 1}).saved
    assert saved is not None
    assert saved.state == {"step": 3, "best_loss": None}
    assert list(saved.best) == ["best"] and list(saved.optimizer) == ["a/b"]
    progress.clear()
    assert Progress(path, {"round": 1}).saved is None


def test_another_kind_of_file_is_not_progress(tmp_path: Path) -> None:
    path = tmp_path / "progress.safetensors"
    save(Weights({"model/x": torch.ones(1)}, sf.Masks({}), {}), path)
    with pytest.raises(ValueError, match="belongs to another run"):
        Progress(path, {"round": 1})


def test_the_rewind_point_is_where_round_0_began(tmp_path: Path) -> None:
    """A module is not made under the run's seed: the process that goes on has drawn other weights."""
    first, then = tiny_trainer(Net()), tiny_trainer(Net())
    theta_0 = dense_state(first.model)
    first.should_stop = lambda: True
    with pytest.raises(Stopped):
        search(tmp_path, first, rewind_to=0)
    assert differing(theta_0, search(tmp_path, then, rewind_to=0)[0].rewind) == []


def test_step_counters_go_where_a_fused_optimizer_wants_them() -> None:
    """On the device of the parameter; on a GPU the step would fail otherwise."""
    model = Net()
    saved = {f"{name}/step": torch.tensor(3.0) for name, _ in model.named_parameters()}
    model.to("meta")
    for options, device in (({"fused": True}, "meta"), ({"capturable": True}, "meta"), ({}, "cpu")):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.param_groups[0].update(options)
        restore_optimizer(model, optimizer, saved)
        assert {state["step"].device.type for state in optimizer.state.values()} == {device}
