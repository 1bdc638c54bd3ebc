"""The commands in this process. What they print for machines is JSON; a wrong input is one line and status 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import CommandLine
from torch import nn

import sparseflow as sf
from sparseflow import cli
from sparseflow.hardware import backends
from sparseflow.models import lenet_300_100
from sparseflow.recipes import load_recipe
from sparseflow.replay import read_plans

TINY = ["--set", "training.steps=4", "--set", "pruning.rounds=1", "--set", "controls.rounds=[]", "--set", "workers=1"]


@pytest.fixture
def sparseflow(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capfd)


@pytest.fixture
def ticket(tmp_path: Path) -> Path:
    model: nn.Module = lenet_300_100(inputs=64)
    rounds = sf.rounds(model, rounds=1, rate=0.5)
    next(rounds).finish()
    sf.save(next(rounds).ticket(), tmp_path / "ticket.safetensors")
    return tmp_path / "ticket.safetensors"


def run_of(folder: Path, *more: str) -> list[object]:
    return ["run", "digits", "--out", folder, *TINY, *more]


def test_run_prints_its_result_for_machines(tmp_path: Path, sparseflow: CommandLine) -> None:
    said = sparseflow(*run_of(tmp_path / "run", "--set", "seeds=[3]", "--set", "backend=dense"), "--json")
    assert said.status == 0
    assert json.loads(said.out) == json.loads((tmp_path / "run" / "result.json").read_text())
    assert [row["backends"] for row in json.loads(said.out)["rounds"]][1]["fc1.weight"] == "dense"
    again = sparseflow(*run_of(tmp_path / "run", "--set", "seeds=[3]", "--set", "backend=dense"), "--resume")
    assert again.status == 0 and "report: " in again.out
    inspected = json.loads(sparseflow("inspect", tmp_path / "run", "--json").out)
    assert inspected["round"] == 1 and inspected["kind"] == "ticket"
    assert sparseflow("export", tmp_path / "run", tmp_path / "dense.safetensors").status == 0
    state = sf.load(tmp_path / "dense.safetensors")
    assert isinstance(state, sf.Weights)
    state.into(lenet_300_100(inputs=64))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.step=3", "unknown key 'training.step'; did you mean 'steps'?"),
        ("pruning.criterion=magnitud", "did you mean 'magnitude'"),
        ("pruning.rates={fc9.weight: 0.1}", "no parameter matching 'fc9.weight'"),
        ("pruning.floor=-3", "got -3"),
        ("pruning.param_filter=conv*", "matches no prunable weight; they are: fc1.weight"),
        ("backend=tritn", "no backend 'tritn'"),
        ("model=lenet_300_100", "cannot train on data 'digits' with examples of shape (64,)"),
        ("model.options={inputs: 64, classes: 3}", "cannot train on data 'digits'"),
        ("data={name: text, options: {path: /none}}", "no file /none"),
        ("data=digitz", "no data 'digitz'"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_leaves_no_folder(
    tmp_path: Path, sparseflow: CommandLine, setting: str, message: str
) -> None:
    assert message in sparseflow(*run_of(tmp_path / "run", "--set", setting)).error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, sparseflow: CommandLine) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty and holds no run" in sparseflow(*run_of(tmp_path)).error
    assert "cannot make the folder" in sparseflow(*run_of(tmp_path / "mine.txt" / "run")).error
    assert "expected a folder, got the file" in sparseflow(*run_of(tmp_path / "mine.txt")).error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "expected a result.json"),
        ("[]", "none for"),
        ('{"plan": {"1": 7, "2": []}}', "a list of plans for each seed"),
        ('{"rows": [{"a": 1}], "left_dense": {}}', "expected a plan as written by sparseflow"),
        ('{"plan": {"1": []}}', "got none for [2]"),
        ('{"plan": 5}', "got none for [1, 2]"),
        ('{"plan": {"1": [{}], "2": []}}', "plan.json: expected a result.json"),
    ],
)
def test_a_plan_that_is_none_is_refused(
    tmp_path: Path, sparseflow: CommandLine, content: str | None, message: str
) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    assert message in sparseflow(*run_of(tmp_path / "run"), "--plan", path).error
    assert not (tmp_path / "run").exists()


def test_plan_charges_traffic_and_memory_where_several_ranks_are_asked_for(
    tmp_path: Path, sparseflow: CommandLine
) -> None:
    backend = ["backend=dense-compact"]
    assert "modelled: gradients" not in sparseflow("plan", "digits", "--set", *backend).out
    text = sparseflow("plan", "digits", "--set", *backend, "--world", "8").out
    assert "on 8 ranks, modelled: gradients of the pruned layers" in text and "FSDP2" in text
    said = sparseflow("plan", "digits", "--set", *backend, "--world", "8", "--json")
    charged = json.loads(said.out)["charge"]
    assert charged["world"] == 8 and charged["ratio"] == pytest.approx(0.1, rel=0.01)
    # What more is in it does not keep it from being replayed.
    (tmp_path / "plan.json").write_text(said.out)
    assert 1 in read_plans(tmp_path / "plan.json", load_recipe("digits", backend))[1]


def test_plan_lists_every_candidate_and_can_be_replayed(tmp_path: Path, sparseflow: CommandLine) -> None:
    said = sparseflow("plan", "digits", "--density", "0.1", "--json")
    rows = json.loads(said.out)["rows"]
    assert [row["name"] for row in rows] == ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert all({one["backend"] for one in row["candidates"]} == set(backends.available()) for row in rows)
    assert "fc1.weight" in sparseflow("plan", "digits").out
    (tmp_path / "plan.json").write_text(said.out)
    more = ["--set", "seeds=[1]", "--plan", str(tmp_path / "plan.json"), "--json"]
    result = json.loads(sparseflow(*run_of(tmp_path / "run", *more)).out)
    assert result["rounds"][1]["backends"] == {row["name"]: row["backend"] for row in rows}


@pytest.mark.parametrize("density", ["0", "1.5", "-0.1"])
def test_a_density_outside_0_to_1_is_refused(sparseflow: CommandLine, density: str) -> None:
    said = sparseflow("plan", "digits", f"--density={density}")
    assert f"density: expected the fraction to keep, in (0, 1], got {float(density)}" in said.error


def test_inspect_says_what_a_ticket_holds(sparseflow: CommandLine, ticket: Path) -> None:
    found = json.loads(sparseflow("inspect", ticket, "--json").out)
    assert found["kind"] == "ticket" and found["density"] == pytest.approx(0.5, abs=1e-3)
    assert found["layers"]["fc1.weight"]["shape"] == [300, 64]
    assert sum(layer["kept"] for layer in found["layers"].values()) == 25_100
    said = sparseflow("inspect", ticket).out
    assert "fc1.weight" in said and "density: 0.5" in said


def test_export_writes_weights_that_load_anywhere(tmp_path: Path, sparseflow: CommandLine, ticket: Path) -> None:
    sizes = {}
    for form in ("dense", "compact"):
        path = tmp_path / f"{form}.safetensors"
        said = json.loads(sparseflow("export", ticket, path, "--format", form, "--json").out)
        assert said == {"path": str(path), "bytes": path.stat().st_size}
        sizes[form] = said["bytes"]
        weights, original = sf.load(path), sf.load(ticket)
        assert isinstance(weights, sf.Weights) and isinstance(original, sf.Ticket)
        assert torch.equal(weights.state["fc1.weight"], original.rewind["fc1.weight"])
    assert sizes["compact"] < 0.6 * sizes["dense"]


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path, sparseflow: CommandLine, ticket: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert "nothing at" in sparseflow("inspect", tmp_path / "none").error
    assert "expected a finished run with model.safetensors" in sparseflow("export", tmp_path, out).error
    assert (
        "expected dense, compact or cerebras, got 'zip'" in sparseflow("export", ticket, out, "--format", "zip").error
    )
    assert "expected a folder" in sparseflow("export", ticket, tmp_path / "no" / "out.safetensors").error
    assert "got a folder" in sparseflow("export", ticket, tmp_path).error
    assert "cannot write it" in sparseflow("export", ticket, tmp_path / ("long" * 100)).error
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe")
    assert "recipe.yaml: expected a recipe in UTF-8" in sparseflow("run", tmp_path / "recipe.yaml").error
    ticket.write_bytes(ticket.read_bytes()[:-1])
    assert "ticket.safetensors" in sparseflow("inspect", ticket).error
    assert "ticket.safetensors" in sparseflow("export", ticket, out).error
    assert not out.exists()


def test_a_refused_optimizer_is_named_and_its_folder_can_be_used_again(tmp_path: Path, sparseflow: CommandLine) -> None:
    run = run_of(tmp_path / "run", "--set", "seeds=[3]", "--set", "backend=dense")
    wrong = sparseflow(*run, "--set", "training.optimizer.options.betas=5").error
    assert "training.optimizer 'adam' refuses its options" in wrong
    before = (tmp_path / "run" / "checkpoints" / "seed-3" / "rewind" / "rewind.safetensors").read_bytes()
    # Other classes, hence another network to start from.
    assert sparseflow(*run, "--set", "model.options={inputs: 64, classes: 11}").status == 0
    assert (tmp_path / "run" / "checkpoints" / "seed-3" / "rewind" / "rewind.safetensors").read_bytes() != before


def test_a_traceback_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sparseflow", "run", "lennet", "--traceback"])
    with pytest.raises(ValueError, match="no recipe 'lennet'"):
        cli.main()


def test_data_and_backends_are_listed(sparseflow: CommandLine) -> None:
    listed = json.loads(sparseflow("data", "--json").out)
    assert listed.keys() == {"fashion_mnist", "digits", "text"} and listed["digits"].endswith("digits.csv.gz")
    assert "no data to fetch 'digit'" in sparseflow("data", "digit").error
    found = json.loads(sparseflow("backends", "--json").out)
    assert list(found) == list(backends.available()) and found["dense"] is None
    assert "dense            ready" in sparseflow("backends").out


def test_an_unknown_recipe_lists_the_known(sparseflow: CommandLine) -> None:
    said = sparseflow("run", "lennet").error
    assert "no recipe 'lennet': expected a YAML file or one of: " in said
    assert all(f"{name}, " in said for name in ("digits", "lenet", "gpt", "rigl"))


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, sparseflow.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
