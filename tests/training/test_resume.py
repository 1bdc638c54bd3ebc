"""A search that is stopped or killed anywhere, and goes on, leaves what one leaves that ran through."""

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from leavings import left_in
from searches import search, stop_after
from tiny_task import Net, differing, tiny_trainer

from sparseflow.files.commit import remove
from sparseflow.files.readers import read_tensors
from sparseflow.hardware.model import dense_state
from sparseflow.training.progress import Progress, restore_optimizer
from sparseflow.training.records import Records
from sparseflow.training.trainer import Stopped

ADAM = partial(torch.optim.Adam, lr=0.01, fused=True)


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


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_at_rename(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, renames = os.rename, iter(range(1000))

    def renamed(source: Any, target: Any) -> None:
        if next(renames) == number:
            raise Killed
        rename(source, target)

    monkeypatch.setattr(os, "rename", renamed)


# Commits, replaced ones and removals alike.
@pytest.mark.parametrize("number", range(18))
def test_killed_at_any_rename(
    tmp_path: Path, uninterrupted: dict[str, object], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    # Every evaluation writes progress.
    monkeypatch.setattr(Progress, "due", lambda self: True)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killed_at_rename(number, patched)
        search(tmp_path)
    search(tmp_path)
    assert left_in(tmp_path) == uninterrupted


def test_a_finished_search_is_read_not_run(tmp_path: Path) -> None:
    first = search(tmp_path)
    steps: list[int] = []
    again = search(tmp_path, tiny_trainer(listener=lambda event: steps.append(event["step"])))
    assert [ticket.digest for ticket in again] == [ticket.digest for ticket in first]
    assert steps == []


def test_progress_of_another_run_is_refused(tmp_path: Path) -> None:
    stopped_in_round_1(tmp_path)
    with pytest.raises(ValueError, match="belongs to another run"):
        search(tmp_path, tiny_trainer(evaluate_every=3, seed=2))


def stopped_in_round_1(folder: Path, **changes: Any) -> None:
    trainer = tiny_trainer(evaluate_every=3)
    stop_after(trainer, 8)
    with pytest.raises(Stopped):
        search(folder, trainer, **changes)
    assert [path.name for path in (folder / "round-01.training").iterdir()] == ["step-000004"]


def test_a_plan_for_a_backend_that_is_gone_names_replan(tmp_path: Path) -> None:
    stopped_in_round_1(tmp_path)
    recorded = Records(tmp_path).plan(1)
    assert recorded is not None
    rows = [dataclasses.replace(row, backend="cuda-2") for row in recorded.rows]
    remove(tmp_path / "plan-01")
    Records(tmp_path).keep_plan(1, dataclasses.replace(recorded, rows=tuple(rows)))
    with pytest.raises(ValueError, match=r"round 1 was planned for backend cuda-2.*--replan"):
        search(tmp_path)
    records = Records(tmp_path)
    records.forget_plans()
    assert records.plan(1) is None
    search(tmp_path)


def test_progress_is_canonical(tmp_path: Path) -> None:
    """What one backend has reached, another takes up: nothing of a native order is in the file."""
    for backend in ("dense", "dense-compact"):
        stopped_in_round_1(tmp_path / backend, backend=backend)
    path = "round-01.training/step-000004/state.safetensors"
    first, second = (read_tensors(tmp_path / backend / path) for backend in ("dense", "dense-compact"))
    assert first["optimizer/fc1.weight/momentum_buffer"].shape == (16, 8)
    assert differing(first, second) == []


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
