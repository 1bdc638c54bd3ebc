"""Dense rounds under DeepSpeed, as `python -m sparseflow_launchers.dense` runs them, and the sparse ones after them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from zero_launches import ROOT, Ended, Zygote

from sparseflow.masks.select import prune_tensors
from sparseflow.training.records import Records
from sparseflow_launchers.zero_files import ZeroFiles

CONFIGS = ROOT / "launchers" / "configs"
SETTINGS = {
    "model.options": "{context: 8, layers: 2, heads: 2, width: 10}",
    "training.steps": 12,
    "training.batch_size": 8,
    "training.evaluate_every": 5,
    "training.schedule.options.warmup": 2,
    "pruning.rewind_to": 3,
    "pruning.rounds": 1,
    "controls.rounds": "[]",
    "seeds": "[1]",
    "backend": "dense",
}
TIMES = ("seconds", "step_seconds")
# Runs whose round 0 ends well, one of each stage.
DENSE = {"zero0": 0, "zero1": 1, "whole": 2, "stopped": 3}


def arguments(folder: Path, out: str, config: str, *more: str, **changes: object) -> list[str]:
    """Of `sparseflow_launchers.dense`, for a network that trains in a second; double underscores are dots."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    data = {"data.options": f"{{context: 8, path: {folder / 'text.txt'}}}"}
    settings = [f"--set={key}={value}" for key, value in {**SETTINGS, **data, **changed}.items()]
    found = CONFIGS / config
    place = found if found.exists() else folder / config
    return ["gpt", "--deepspeed", str(place), "--out", str(folder / out), "--timeout", "30", *settings, *more]


def launches(folder: Path) -> dict[str, dict[str, Any]]:
    """What the tests below look at, in this order."""
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    (folder / "wrong.json").write_text(json.dumps({"train_micro_batch_size_per_gpu": 3}))

    def train(out: str, config: str, *more: str, **job: Any) -> dict[str, Any]:
        return {"world": 2, "job": "train", "arguments": {"arguments": arguments(folder, out, config, *more), **job}}

    def search(out: str) -> dict[str, Any]:
        recipe = str(folder / out / "recipe.yaml")
        found = [recipe, "--out", str(folder / out), "--resume", "--timeout", "30"]
        return {"world": 2, "job": "search", "arguments": {"arguments": found}}

    often = "--save-every=0"
    return {
        "whole": train("whole", "ds_zero2.json"),
        "killed": train("killed", "ds_zero2.json", often, die=[1, 8]),
        "resumed": train("killed", "ds_zero2.json", often, "--resume"),
        "stopped": train("stopped", "ds_zero3_bf16.json", stop=[1, 4]),
        "other": train("stopped", "ds_zero3.json", "--resume"),
        "continued": train("stopped", "ds_zero3_bf16.json", "--resume"),
        "nan": train("nan", "ds_zero1.json", nan=[1, 6]),
        "wrong": train("wrong", "wrong.json"),
        "zero0": train("zero0", "ds_zero0_bf16.json"),
        "zero1": train("zero1", "ds_zero1.json"),
        **{f"sparse rounds of {out}": search(out) for out in DENSE},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dense")


@pytest.fixture(scope="module")
def ended(zygote: Zygote, folder: Path) -> dict[str, Ended]:
    return zygote.launch(launches(folder), folder)


def records(folder: Path, out: str) -> Records:
    return Records(folder / out / "checkpoints" / "seed-1")


def outcome(folder: Path, out: str) -> dict[str, Any]:
    """What a dense round has left, without times."""
    kept = records(folder, out)
    metrics = kept.metrics(0)
    masks = kept.masks(1)
    rewind_point = kept.rewind_point(torch.device("cpu"))
    assert metrics is not None and masks is not None and rewind_point is not None
    return {
        "ticket": kept.ticket(0).digest,
        "masks": masks.digest,
        "trained": {name: tensor.tolist() for name, tensor in kept.trained(0).state.items()},
        "rewind": {name: tensor.tolist() for name, tensor in rewind_point.items()},
        "metrics": {key: value for key, value in metrics.items() if key not in TIMES},
        "scores": kept.scores(0).tolist(),
    }


def stopped(folder: Path, out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / out / "stopped.json").read_text())
    return found


class TestRound0:
    def test_leaves_the_masks_of_round_1(self, ended: dict[str, Ended], folder: Path) -> None:
        assert ended["whole"].statuses == [0, 0], ended["whole"].log[-3000:]
        kept = records(folder, "whole")
        masks = kept.masks(1)
        assert masks is not None
        weights = {name: kept.trained(0).state[name] for name in masks}
        assert masks == prune_tensors(weights, rate=0.3, floor=0.01)

    def test_keeps_the_weights_of_the_rewind_step(self, ended: dict[str, Ended], folder: Path) -> None:
        rewind_point = records(folder, "whole").rewind_point(torch.device("cpu"))
        assert rewind_point is not None
        there = ZeroFiles(folder / "whole/checkpoints/seed-1/round-00.zero/step-000003").state()
        assert rewind_point.keys() == there.keys()
        assert all(torch.equal(tensor, there[name]) for name, tensor in rewind_point.items())

    def test_says_how_it_goes_on(self, ended: dict[str, Ended], folder: Path) -> None:
        assert f"--out {folder / 'whole'} --resume" in ended["whole"].log

    def test_killed_and_resumed_is_the_same(self, ended: dict[str, Ended], folder: Path) -> None:
        assert ended["killed"].statuses == [1, -9], ended["killed"].log[-3000:]
        assert "rank 1 died or hangs" in ended["killed"].log
        assert ended["resumed"].statuses == [0, 0], ended["resumed"].log[-3000:]
        assert outcome(folder, "killed") == outcome(folder, "whole")


class TestStops:
    def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(self, ended: dict[str, Ended], folder: Path) -> None:
        assert ended["stopped"].statuses == [75, 75], ended["stopped"].log[-3000:]

    def test_another_stage_does_not_go_on(self, ended: dict[str, Ended]) -> None:
        assert ended["other"].statuses == [2, 2], ended["other"].log[-3000:]
        assert "was written with dtype bf16" in ended["other"].log

    def test_and_it_goes_on_from_there(self, ended: dict[str, Ended], folder: Path) -> None:
        assert ended["continued"].statuses == [0, 0], ended["continued"].log[-3000:]
        assert records(folder, "stopped").finished_rounds() > 0
        assert not (folder / "stopped/stopped.json").exists()

    def test_a_loss_that_is_not_finite_stops_all_at_one_step(self, ended: dict[str, Ended], folder: Path) -> None:
        assert ended["nan"].statuses == [1, 1], ended["nan"].log[-3000:]
        assert ended["nan"].log.count("a training loss was not finite") == 1
        assert stopped(folder, "nan")["status"] == 1
        steps = sorted(path.name for path in (folder / "nan/checkpoints/seed-1/round-00.zero").iterdir())
        assert steps == ["step-000003"]

    def test_batches_that_do_not_add_up_end_it_before_it_begins(self, ended: dict[str, Ended], folder: Path) -> None:
        assert ended["wrong"].statuses == [2, 2], ended["wrong"].log[-3000:]
        told = [line for line in ended["wrong"].log.splitlines() if line.startswith("sparseflow: ")]
        assert len(told) == 1 and "training.batch_size 8 is not processes" in told[0]
        assert not (folder / "wrong").exists()


@pytest.mark.parametrize("out", DENSE)
def test_sparse_rounds_under_ddp_go_on_behind_it(ended: dict[str, Ended], folder: Path, out: str) -> None:
    last = ended[f"sparse rounds of {out}"]
    assert last.statuses == [0, 0], last.log[-3000:]
    kept = records(folder, out)
    assert kept.finished_rounds() == 2
    files = ZeroFiles(folder / out / "checkpoints/seed-1/round-00.zero/step-000012")
    assert files.stage == DENSE[out]
    masks = prune_tensors({name: files.tensor(name) for name in kept.ticket(0).masks}, rate=0.3, floor=0.01)
    ticket, trained, rewind_point = kept.ticket(1), kept.trained(1), kept.rewind_point(torch.device("cpu"))
    assert ticket.masks == trained.masks == masks and rewind_point is not None
    for name, mask in masks.items():
        assert torch.equal(ticket.rewind[name], torch.where(mask, rewind_point[name], 0.0))
        assert not trained.state[name][~mask].any() and trained.state[name][mask].all()
