"""Runs of recipes: the same again, stopped, killed and resumed, and every architecture through the same code."""

import gzip
import hashlib
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import CommandLine

import sparseflow as sf
from sparseflow import cli, display
from sparseflow.data import fashion
from sparseflow.data.idx import IdxFile
from sparseflow.files import Ticket
from sparseflow.recipes import load_recipe
from sparseflow.replay import read_plans
from sparseflow.runs import Run, check, load_run, open_run, run_seed
from sparseflow.workers import run_all

SHORT = {
    "training.steps": 12,
    "training.evaluate_every": 4,
    "pruning.rounds": 1,
    "controls.rounds": "[1]",
    "controls.kinds": "[shuffle]",
    "seeds": "[1]",
    "workers": 1,
    "threads": 1,
}
TIMES = ("seconds", "step_seconds")


def settings(**changes: object) -> list[str]:
    """Arguments of `sparseflow run`; double underscores stand for dots."""
    merged = {**SHORT, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [word for key, value in merged.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
def sparseflow(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capfd)


def outcome(folder: Path) -> dict[str, object]:
    """Everything that a run computed, without times."""
    found: dict[str, object] = {}
    for path in sorted((folder / "checkpoints").rglob("*.*")):
        if path.is_dir() or path.name == "MANIFEST.json":
            continue
        name = path.relative_to(folder).as_posix()
        if path.name == "ticket.safetensors":
            ticket = sf.load(path)
            assert isinstance(ticket, Ticket)
            found[name] = ticket.digest
        elif path.suffix == ".json":
            content = json.loads(path.read_text())
            found[name] = {key: value for key, value in content.items() if key not in TIMES}
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds, one after the other, on backends chosen by measurement."""
    folder = tmp_path_factory.mktemp("runs") / "reference"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["sparseflow", "run", "digits", "--out", str(folder), *settings(seeds="[1, 2]")])
        with pytest.raises(SystemExit) as exit:
            cli.main()
    assert exit.value.code in (0, None)
    return folder


def test_a_run_leaves_what_the_contract_names(reference: Path) -> None:
    names = {path.name for path in reference.iterdir()}
    assert names == {
        *("result.json", "metrics.jsonl", "report.html", "ticket.safetensors", "model.safetensors"),
        *("recipe.yaml", "checkpoints"),
    }
    result = json.loads((reference / "result.json").read_text())
    assert result.keys() >= {"recipe", "versions", "seeds", "plan", "rounds", "controls", "verdict"}
    assert [(row["seed"], row["round"]) for row in result["rounds"]] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    wanted = {"density", "kept", "test_accuracy", "early_stop_step", "seconds"}
    assert all(row.keys() >= wanted for row in [*result["rounds"], *result["controls"]])
    assert [row["kind"] for row in result["controls"]] == ["shuffle", "shuffle"]
    lines = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["event"] == "step"]
    assert steps == [4, 8, 12] * 6


def test_the_same_seed_and_plan_give_the_same_masks_and_weights(
    tmp_path: Path, reference: Path, sparseflow: CommandLine
) -> None:
    arguments = ["run", "digits", *settings(seeds="[1, 2]"), "--plan", reference / "result.json"]
    assert sparseflow(*arguments, "--out", tmp_path / "again").status == 0
    assert outcome(tmp_path / "again") == outcome(reference)
    plans = [json.loads((folder / "result.json").read_text())["plan"] for folder in (reference, tmp_path / "again")]
    assert plans[0] == plans[1]


def test_stopped_by_a_signal_and_resumed(
    tmp_path: Path, reference: Path, sparseflow: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["run", "digits", *settings(seeds="[1, 2]"), "--plan", reference / "result.json"]
    out = ["--out", tmp_path / "run"]
    with monkeypatch.context() as patched:
        signal_at_event(patched, 8)
        stopped = sparseflow(*arguments, *out)
    assert stopped.status == 75
    command = shlex.split(stopped.err.partition("stopped; go on with: sparseflow ")[2])
    assert command[-1] == "--resume"
    note = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert (note["status"], note["reason"], note["path"]) == (75, "signal", str(tmp_path / "run"))
    assert not (tmp_path / "run" / "result.json").exists()
    assert "pass --resume" in sparseflow(*arguments, *out).error
    assert sparseflow(*command).status == 0
    assert not (tmp_path / "run" / "stopped.json").exists()
    assert outcome(tmp_path / "run") == outcome(reference)


def signal_at_event(patched: pytest.MonkeyPatch, number: int) -> None:
    """Sends SIGTERM to this process when the event of that number is shown."""
    shown: list[dict[str, Any]] = []
    show = display.Lines.show

    def signalling(self: display.Lines, event: dict[str, Any]) -> None:
        show(self, event)
        shown.append(event)
        if len(shown) == number:
            os.kill(os.getpid(), signal.SIGTERM)

    patched.setattr(display.Lines, "show", signalling)


def test_seeds_side_by_side_are_stopped_together_and_go_on(
    tmp_path: Path, reference: Path, sparseflow: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    plan = ["--plan", reference / "result.json"]
    with monkeypatch.context() as patched:
        # The first event of the first worker: the other one is anywhere, perhaps not even done with its imports.
        signal_at_event(patched, 1)
        said = sparseflow("run", "digits", *settings(seeds="[1, 2]", workers=2), *plan, "--out", out)
    assert said.status == 75 and json.loads((out / "stopped.json").read_text())["status"] == 75
    # The rest in this process: two more would only take time.
    alone = load_run(out).recipe.model_copy(update={"workers": 1})
    run_all(Run(out, alone), lambda event: None, read_plans(reference / "result.json", alone))
    assert outcome(out) == outcome(reference)


def test_killed_in_the_middle_of_a_training_and_resumed(
    tmp_path: Path, reference: Path, sparseflow: CommandLine
) -> None:
    out = tmp_path / "run"
    longer = settings(training__steps=150, training__evaluate_every=25, controls__rounds="[]")
    arguments = ["run", "digits", *longer, "--plan", str(reference / "result.json")]
    command = [sys.executable, "-m", "sparseflow.cli", *arguments, "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "result.json").exists()
    assert sparseflow(*arguments, "--out", out, "--resume").status == 0
    assert sparseflow(*arguments, "--out", tmp_path / "whole").status == 0
    assert outcome(out) == outcome(tmp_path / "whole")


@pytest.fixture
def small_fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Fashion-MNIST of 60 training images in its published form, where this user's data belongs."""
    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = []
    for published, count in zip(fashion.FILES, (60, 60, 20, 20), strict=True):
        shape = (count, *published.shape[1:])
        content = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        content += rng.integers(0, 256 if len(shape) > 1 else 10, shape, dtype=np.uint8).tobytes()
        files.append(IdxFile(published.name, shape, hashlib.sha256(content).hexdigest()))
        (folder / published.name).write_bytes(gzip.compress(content))
    monkeypatch.setattr(fashion, "FILES", tuple(files))
    monkeypatch.setenv("SPARSEFLOW_DATA", str(tmp_path / "data"))


def two_rounds(name: str, folder: Path, overrides: list[str]) -> list[Ticket]:
    short = ["training.steps=3", "training.evaluate_every=2", "pruning.rounds=2", "pruning.rewind_to=1"]
    recipe = load_recipe(name, [*short, "controls.rounds=[2]", "controls.kinds=[reinit]", "seeds=[1]", *overrides])
    check(recipe)
    run = open_run(folder, recipe, resume=False)
    events: list[dict[str, Any]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_seed(run, 1, events.append)
    torch.set_num_threads(threads)
    trained = [(event["kind"], event["round"]) for event in events if event["event"] == "trained"]
    assert trained == [("round", 0), ("round", 1), ("round", 2), ("reinit", 2)]
    return list(run.records(1).tickets())


def test_resnet20_runs_two_rounds(tmp_path: Path, small_fashion: None) -> None:
    overrides = [
        "training.batch_size=10",
        "model.options.width=4",
        # Timing twenty layers would take longer than all else here.
        "backend=dense-compact",
        "training.schedule.options={milestones: [2], warmup: 1}",
    ]
    tickets = two_rounds("resnet20", tmp_path / "run", overrides)
    assert [round(ticket.density, 2) for ticket in tickets] == [1.0, 0.8, 0.64]
    assert "layer3.2.conv2.weight" in tickets[2].masks
    # BatchNorm statistics of step 1 are in every ticket.
    assert all(int(ticket.rewind["bn1.num_batches_tracked"]) == 1 for ticket in tickets)


@pytest.mark.parametrize("recipe", ["gpt", "gpt_stream"])
def test_gpt_runs_two_rounds(tmp_path: Path, recipe: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a rose is a rose is a rose; so are two lips, and three.\n" * 40)
    overrides = [
        "training.batch_size=4",
        "model.options={context: 16, layers: 2, heads: 2, width: 16}",
        "training.schedule.options={warmup: 1}",
        f"data.options={{path: {text}, context: 16}}",
    ]
    tickets = two_rounds(recipe, tmp_path / "run", overrides)
    assert [round(ticket.density, 2) for ticket in tickets] == [1.0, 0.7, 0.49]
    assert all(name.startswith("blocks.") for name in tickets[2].masks)


def test_lenet_streams_what_it_computes_in_memory(tmp_path: Path) -> None:
    overrides = ["data=digits", "model.options={inputs: 64}", "threads=1"]
    streamed = two_rounds("lenet_stream", tmp_path / "run", overrides)
    dense = two_rounds("lenet_stream", tmp_path / "dense", [*overrides, "stream=null", "backend=dense"])
    assert [ticket.masks.digest for ticket in streamed] == [ticket.masks.digest for ticket in dense]
    losses = [
        [(ticket.provenance["metrics"]["test_loss"]) for ticket in tickets]  # type: ignore[index]
        for tickets in (streamed, dense)
    ]
    assert losses[0] == losses[1]
    assert (tmp_path / "run" / "store" / "seed-1" / "MANIFEST.json").exists()


def test_a_streamed_run_goes_on_after_a_signal(
    tmp_path: Path, sparseflow: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["run", "digits", *settings(stream="{}", training__optimizer="{name: adam, lr: 0.0012}")]
    assert sparseflow(*arguments, "--out", tmp_path / "whole").status == 0
    with monkeypatch.context() as patched:
        signal_at_event(patched, 5)
        assert sparseflow(*arguments, "--out", tmp_path / "run").status == 75
    assert sparseflow(*arguments, "--out", tmp_path / "run", "--resume").status == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert "modelled" in (tmp_path / "run" / "report.html").read_text()


def test_a_change_of_the_recipe_is_named(reference: Path, sparseflow: CommandLine) -> None:
    said = sparseflow("run", "digits", "--out", reference, "--resume", *settings(seeds="[1, 2]", pruning__rate=0.3))
    assert "holds a run of another recipe: pruning differ" in said.error


def test_a_damaged_ticket_is_named_on_resume(tmp_path: Path, sparseflow: CommandLine) -> None:
    arguments = ["run", "digits", *settings(controls__rounds="[]"), "--out", tmp_path / "run"]
    assert sparseflow(*arguments).status == 0
    path = tmp_path / "run" / "checkpoints" / "seed-1" / "round-00" / "ticket.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.warns(UserWarning, match=r"round-00/ticket\.safetensors breaks the rule 'size'"):
        said = sparseflow(*arguments, "--resume")
    assert said.status == 2 and "round-00 is missing or damaged" in said.err.splitlines()[-1]
    note = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert note["status"] == 2 and "round-00 is missing or damaged" in note["reason"]


def test_a_training_that_diverges_is_status_1_with_advice(tmp_path: Path, sparseflow: CommandLine) -> None:
    arguments = ["run", "digits", *settings(training__optimizer__lr="1e30"), "--out", tmp_path / "run"]
    said = sparseflow(*arguments)
    assert said.status == 1 and said.err.startswith("sparseflow: the training loss is not finite at step 4")
    assert json.loads((tmp_path / "run" / "stopped.json").read_text())["status"] == 1


def test_a_full_disk_is_status_1_with_path_and_bytes(tmp_path: Path, sparseflow: CommandLine) -> None:
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    arguments = ["run", "digits", *settings(controls__rounds="[]"), "--out", tmp_path / "run"]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        said = sparseflow(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert said.status == 1
    assert "sparseflow: [Errno 27] no room for" in said.err and "rewind.safetensors, which needs" in said.err
    note = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert note["status"] == 1 and "no room for" in note["reason"]
    assert sparseflow(*arguments, "--resume").status == 0
