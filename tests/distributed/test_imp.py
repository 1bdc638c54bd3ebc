"""The search on two processes: the same bits as on one, and an end for all where one of them ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from launching import ENDLESS, RECIPE, Workers, evaluations, run, stopped, until, workers
from torch import Tensor

from sparseflow.comparison import compare_runs
from sparseflow.files import Weights, load
from sparseflow.hardware.model import sparse_layers
from sparseflow.runs import load_run
from sparseflow.training.steps import Training


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two processes."""
    folder = tmp_path_factory.mktemp("pair")
    assert run(folder, "--out", "run").statuses() == [0, 0]
    return folder / "run"


@pytest.fixture(scope="module")
def sharded_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same under FSDP2."""
    folder = tmp_path_factory.mktemp("sharded-pair")
    assert run(folder, "--out", "run", "--engine", "fsdp2").statuses() == [0, 0]
    return folder / "run"


def bits(out: Path) -> list[object]:
    """The tickets of all rounds, and the weights of the last, of a run."""
    found = load(out / "model.safetensors")
    assert isinstance(found, Weights)
    weights = [(name, tensor.numpy().tobytes()) for name, tensor in sorted(found.state.items())]
    return [*(ticket.digest for ticket in load_run(out).records(1).tickets()), weights]


def test_two_processes_train_what_one_accumulates(tmp_path: Path, pair: Path) -> None:
    assert run(tmp_path, "--out", "run", "--set", "training.accumulate=2", world=1).statuses() == [0]
    assert bits(tmp_path / "run") == bits(pair)


def test_and_so_they_do_in_bfloat16(tmp_path: Path, pair: Path) -> None:
    found = []
    for world in (1, 2):
        arguments = ["--out", "run", "--set", f"training.accumulate={2 // world}"]
        with workers(tmp_path / str(world), *arguments, world=world, before=in_bfloat16) as launched:
            assert launched.statuses() == [0] * world
        found.append(bits(tmp_path / str(world) / "run"))
    assert found[0] == found[1] != bits(pair)
    # Every round, that is: an engine may forget what it was told after the first.
    assert all(a != b for a, b in zip(found[0][1:], bits(pair)[1:]))


def in_bfloat16() -> None:
    """As `accelerate launch --mixed_precision bf16` tells workers."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"


def test_two_processes_are_near_one_on_the_whole_batch(tmp_path: Path) -> None:
    long = ["--set", "training.steps=200", "--set", "training.evaluate_every=10", "--set", "pruning.rounds=1"]
    assert run(tmp_path / "two", "--out", "run", *long).statuses() == [0, 0]
    assert run(tmp_path / "one", "--out", "run", *long, world=1).statuses() == [0]
    found = compare_runs(tmp_path / "one" / "run", tmp_path / "two" / "run")
    assert all(one.same_data_order and one.same_counts for one in found.rounds)
    assert found.verdicts[0] == found.verdicts[1]
    print(found)
    # Far from the third that masks would share by chance on their way to a quarter of the weights.
    assert all(one.overlap > 0.9 for one in found.rounds)
    losses = [dense_losses(tmp_path / world / "run") for world in ("one", "two")]
    assert len(losses[0]) == 20
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)


def dense_losses(out: Path) -> Tensor:
    """What round 0 logged of its training loss."""
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step" and event["round"] == 0]
    return torch.tensor([event["loss"] for event in steps], dtype=torch.float64)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    tmp_path: Path, engine: str, request: pytest.FixtureRequest
) -> None:
    arguments = ["--out", "run", "--engine", engine]
    with workers(tmp_path, *arguments, before=signal_rank_1) as launched:
        assert launched.statuses() == [75, 75]
    said = stopped(tmp_path / "run")
    assert said["status"] == 75 and said["reason"] == "signal" and 0 < said["step"] < 60
    assert run(tmp_path, *arguments, "--resume").statuses() == [0, 0]
    uninterrupted = request.getfixturevalue({"ddp": "pair", "fsdp2": "sharded_pair"}[engine])
    assert bits(tmp_path / "run") == bits(uninterrupted)


def signal_rank_1() -> None:
    """Has rank 1 get a SIGTERM in the middle of round 1."""
    step = Training.step

    def signalled(self: Training, at: int) -> None:
        if sparse_layers(self.model) and at == 30 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, at)

    Training.step = signalled  # type: ignore[method-assign, assignment]


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with in_training(tmp_path) as launched:
        launched.signal(1, signal.SIGSTOP)
        launched.signal(0, signal.SIGTERM)
        # Rank 0 cannot save without rank 1.
        time.sleep(1.5)
        launched.signal(0, signal.SIGTERM)
        assert launched.wait(0, 5) == 128 + signal.SIGTERM


def test_a_killed_worker_ends_the_others_who_name_it(tmp_path: Path) -> None:
    with in_training(tmp_path) as launched:
        launched.signal(1, signal.SIGKILL)
        start = time.monotonic()
        assert launched.wait(0) == 1
        assert time.monotonic() - start < 5
    (line,) = launched.errors(0)
    assert "rank 1 died or hangs (seed 1, round 0, step " in line and "rank 0 noticed it in: seed 1, round 0" in line
    assert stopped(tmp_path / "run")["status"] == 1


def test_rank_0_killed(tmp_path: Path) -> None:
    with in_training(tmp_path) as launched:
        launched.signal(0, signal.SIGKILL)
        assert launched.wait(1, 5) == 1
    (line,) = launched.errors(1)
    assert "rank 0 died or hangs" in line


def test_a_worker_that_hangs_ends_the_others_after_the_timeout(tmp_path: Path) -> None:
    with in_training(tmp_path, "--timeout", 4) as launched:
        launched.signal(1, signal.SIGSTOP)
        start = time.monotonic()
        assert launched.wait(0) == 1
        assert time.monotonic() - start < 4 + 10
    (line,) = launched.errors(0)
    assert "rank 1 died or hangs (seed 1, round 0, step " in line


@contextmanager
def in_training(folder: Path, *arguments: object) -> Iterator[Workers]:
    """Two workers that have trained for a while, and go on."""
    with workers(folder, "--out", "run", *ENDLESS, *arguments) as launched:
        until(lambda: evaluations(folder / "run") > 1)
        yield launched


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_a_loss_that_is_not_finite_on_one_rank_stops_all(tmp_path: Path, engine: str) -> None:
    with workers(tmp_path, "--out", "run", "--engine", engine, before=poison_rank_1) as launched:
        assert launched.statuses() == [1, 1]
    (line,) = launched.errors(0)
    assert "the training loss is not finite at step 40; nothing of it was saved" in line
    assert launched.errors(1) == []
    assert "not finite" in stopped(tmp_path / "run")["reason"]
    assert not list((tmp_path / "run").glob("checkpoints/**/*.trained*"))


def poison_rank_1() -> None:
    """Has rank 1 lose its loss at step 25."""
    step = Training.step

    def poisoned(self: Training, at: int) -> None:
        loss = self.trainer.loss
        if at == 25 and os.environ["RANK"] == "1":
            self.trainer.loss = lambda output, y: loss(output, y) * float("nan")
        step(self, at)
        self.trainer.loss = loss

    Training.step = poisoned  # type: ignore[method-assign, assignment]


def test_fsdp2_trains_what_ddp_trains(pair: Path, sharded_pair: Path) -> None:
    found = compare_runs(pair, sharded_pair)
    assert all(one.same_data_order and one.same_counts and one.overlap > 0.9 for one in found.rounds)
    torch.testing.assert_close(dense_losses(pair), dense_losses(sharded_pair), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("each", "message"),
    [
        ({1: ["--set", "training.steps=70"]}, "rank 1 has another recipe than rank 0"),
        ({1: ["--engine", "fsdp2"]}, "rank 1 has another engine than rank 0"),
        (
            {0: ["--engine", "zero"], 1: ["--engine", "zero"]},
            "--engine: expected ddp or fsdp2, got 'zero'; dense rounds under DeepSpeed are",
        ),
        ({0: ["--processes", 3], 1: ["--processes", 3]}, "--processes 3"),
        ({1: ["--set", "training.batchsize=70"]}, "did you mean 'batch_size'?"),
        ({rank: ["--set", "training.batch_size=59"] for rank in (0, 1)}, "expected a multiple of 2 processes"),
    ],
)
def test_wrong_input_is_one_line_and_status_2_on_all(
    tmp_path: Path, each: dict[int, list[object]], message: str
) -> None:
    with workers(tmp_path, "--out", "run", each=each) as launched:
        assert launched.statuses() == [2, 2]
    (line,) = [line for rank in range(2) for line in launched.errors(rank)]
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    launched = run(tmp_path, "--out", "file/run")
    assert launched.statuses() == [2, 2]
    (line,) = [line for rank in range(2) for line in launched.errors(rank)]
    assert "--out: cannot make the folder" in line


def test_a_folder_that_not_all_ranks_see(tmp_path: Path) -> None:
    with workers(tmp_path, "--out", "run", before=look_elsewhere) as launched:
        assert launched.statuses() == [2, 2]
    (line,) = [line for rank in range(2) for line in launched.errors(rank)]
    assert "--out: rank 1 does not see what rank 0 writes" in line


def look_elsewhere() -> None:
    """Has rank 1 work on a disk of its own."""
    if os.environ["RANK"] == "1":
        os.makedirs("elsewhere")
        os.chdir("elsewhere")
        Path("recipe.yaml").write_text(RECIPE)


@pytest.mark.parametrize(("config", "advice"), [("DEEPSPEED", "sparseflow_launchers.dense"), ("FSDP", "fsdp2.yaml")])
def test_an_accelerate_config_for_another_engine(tmp_path: Path, config: str, advice: str) -> None:
    with workers(tmp_path, "--out", "run", before=partial(set_accelerate, config)) as launched:
        assert launched.statuses() == [2, 2]
    (line,) = [line for rank in range(2) for line in launched.errors(rank)]
    assert advice in line


def set_accelerate(config: str) -> None:
    """As `accelerate launch` tells workers what its config says."""
    os.environ[f"ACCELERATE_USE_{config}"] = "true"


def test_a_process_without_a_launcher_says_how_to_start_it(tmp_path: Path) -> None:
    with workers(tmp_path, before=forget_the_launcher, world=1) as launched:
        assert launched.statuses() == [2]
    (line,) = launched.errors(0)
    assert "torchrun --nproc_per_node" in line


def forget_the_launcher() -> None:
    """As if started by hand."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def test_one_process_that_was_asked_for_needs_no_ranks(tmp_path: Path) -> None:
    # `accelerate launch` starts it without any.
    short = ["--set", "training.steps=20", "--set", "pruning.rounds=0"]
    with workers(tmp_path, "--out", "run", "--processes", 1, *short, before=forget_the_launcher, world=1) as launched:
        assert launched.statuses() == [0], launched.log(0)
    assert (tmp_path / "run" / "ticket.safetensors").exists()


def test_the_report_says_what_was_sent(pair: Path, tmp_path: Path) -> None:
    rounds = json.loads((pair / "result.json").read_text())["rounds"]
    weights = 64 * 300 + 300 * 100 + 100 * 10
    for found, density in zip(rounds, (1, 0.5, 0.25), strict=True):
        sent = found["gradient_bytes"]
        assert found["processes"] == 2 and sent["other"] == 4 * (300 + 100 + 10 + (weights if density == 1 else 0))
        if density < 1:
            assert sent["pruned_if_dense"] == 4 * weights and sent["pruned"] <= 1.1 * density * 4 * weights
    assert (pair.parent / "rank-0.log").read_text().count("gradients sent / dense") == 1
    assert run(tmp_path, "--out", "run", "--set", "backend=dense").statuses() == [0, 0]
    last = json.loads((tmp_path / "run" / "result.json").read_text())["rounds"][-1]["gradient_bytes"]
    assert last["pruned"] == last["pruned_if_dense"]


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with workers(tmp_path, "--out", "run", "--timeout", 2, before=partial(meet_at, port)) as launched:
            assert launched.statuses() == [2, 2]
    (line,) = launched.errors(0)
    assert f"cannot meet the other processes at 127.0.0.1:{port}" in line and "is the port taken?" in line


def meet_at(port: int) -> None:
    """Has the ranks meet at a port that somebody chose for them."""
    os.environ["MASTER_PORT"] = str(port)
