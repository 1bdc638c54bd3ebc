"""Overlap against chance, signs, and several runs' tickets side by side."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from command_line import CommandLine
from hypothesis import given, settings
from hypothesis import strategies as st

import sparseflow as sf
from sparseflow.masks.overlap import overlap_of, sign_agreement
from sparseflow.recipes import load_recipe
from sparseflow.results import finish
from sparseflow.runs import begin, check, open_run, run_seed
from sparseflow.training.instruments import weight_erasure


def random_masks(density: float, seed: int, size: int = 400) -> sf.Masks:
    generator = torch.Generator().manual_seed(seed)
    return sf.Masks({"w": torch.rand(size, size, generator=generator) < density})


@pytest.mark.parametrize("density", [0.5, 0.1, 0.0352])
@pytest.mark.parametrize("count", [2, 3])
def test_random_masks_share_what_chance_says(density: float, count: int) -> None:
    found = overlap_of([random_masks(density, seed, 1000) for seed in range(count)])
    assert found.chance == pytest.approx(density**count, rel=0.02)
    # d^3 of all weights, d^2 of a ticket's: at 3.52 % that is 0.12 %, not 0.
    expected = 1e6 * density**count
    assert abs(found.shared * 1e6 - expected) < 5 * math.sqrt(expected)
    assert found.of_kept == pytest.approx(found.shared / density, rel=0.02)
    assert found.over_chance == pytest.approx(1, abs=0.5 if expected < 100 else 0.1)


def test_chance_knows_the_layers() -> None:
    # All of one layer, nothing of the other: by layers, there is nothing to wonder at.
    whole = sf.Masks({"a": torch.ones(10, dtype=torch.bool), "b": torch.zeros(90, dtype=torch.bool)})
    found = overlap_of([whole, whole])
    assert found.of_kept == 1.0 and found.chance == pytest.approx(0.01)
    assert found.layered == pytest.approx(0.1) and found.over_chance == pytest.approx(1.0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.booleans(), min_size=4, max_size=40), st.lists(st.booleans(), min_size=40, max_size=40))
def test_overlap_counts(first: list[bool], second: list[bool]) -> None:
    a, b = [True, *first], [True, *second[: len(first)]]
    found = overlap_of([{"w": torch.tensor(a)}, {"w": torch.tensor(b)}])
    both = sum(x and y for x, y in zip(a, b))
    assert found.shared == pytest.approx(both / len(a))
    assert found.of_kept == pytest.approx(2 * both / (sum(a) + sum(b)))


def test_masks_of_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected tickets of the same network"):
        overlap_of([random_masks(0.5, 0), {"v": torch.ones(4, dtype=torch.bool)}])
    with pytest.raises(ValueError, match="overlap: expected two masks or more, got 1"):
        overlap_of([random_masks(0.5, 0)])
    with pytest.raises(ValueError, match="keep at least one weight each"):
        overlap_of([random_masks(0.5, 0), random_masks(0.0, 1)])


def test_signs_are_compared_where_both_keep() -> None:
    a, b = {"w": torch.tensor([1.0, -2.0, 3.0, -1.0])}, {"w": torch.tensor([2.0, 2.0, -1.0, -5.0])}
    masks = [{"w": torch.tensor([True, True, True, True])}, {"w": torch.tensor([True, True, False, True])}]
    assert sign_agreement(a, b, masks) == pytest.approx(2 / 3)
    # The trap: pruned zeros have equal signs.
    zeros = {"w": torch.where(masks[1]["w"], a["w"], 0.0)}
    assert sign_agreement(zeros, zeros, masks) == 1.0
    assert math.isnan(sign_agreement(a, b, [{"w": torch.zeros(4, dtype=torch.bool)}]))


def test_erasure_leaves_out_layers_in_which_nothing_varies() -> None:
    start = {"a": torch.randn(4, 4), "b": torch.randn(2, 2)}
    masks = {"a": torch.ones(4, 4, dtype=torch.bool), "b": torch.tensor([[True, False], [False, False]])}
    found = weight_erasure(start, start, masks)
    assert set(found) == {"a"}
    assert found["a"].correlation == pytest.approx(1.0) and found["a"].flips == 0 and found["a"].change == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three criteria from one initialisation."""
    folder = tmp_path_factory.mktemp("criteria")
    recipe = {
        "name": "many",
        "model": {"name": "lenet_300_100", "options": {"inputs": 64}},
        "data": "digits",
        "training": {"steps": 4, "batch_size": 60, "optimizer": {"name": "adam", "lr": 0.001}, "evaluate_every": 2},
        "backend": "dense-compact",
    }
    found, seeds = [], {"magnitude": [1, 2], "snip": [1], "random": [1]}
    for criterion in seeds:
        path = folder / f"{criterion}.yaml"
        path.write_text(
            yaml.safe_dump(
                {**recipe, "seeds": seeds[criterion], "pruning": {"rounds": 1, "density": 0.2, "criterion": criterion}}
            )
        )
        chosen = load_recipe(str(path))
        task, run = check(chosen), open_run(folder / criterion, chosen, resume=False)
        begin(run)
        for seed in chosen.seeds:
            run_seed(run, seed, lambda event: None)
        finish(run, task, 0.0)
        found.append(run.folder)
    return found


@pytest.fixture
def sparseflow(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capfd)


def test_many_tickets_side_by_side(runs: list[Path], sparseflow: CommandLine) -> None:
    found = json.loads(sparseflow("compare", *runs, "--json").out)
    assert [entry["criterion"] for entry in found["entries"]] == ["magnitude", "snip", "random"]
    assert found["same_start"] and found["seed"] == 1 and len(found["pairs"]) == 3
    magnitude_random = found["pairs"][1]
    assert (magnitude_random["first"], magnitude_random["second"]) == (1, 3)
    layered = magnitude_random["overlap"]["layered"]
    assert magnitude_random["overlap"]["shared"] == pytest.approx(layered, rel=0.1)
    # Four steps turn hardly a sign of weights that began alike.
    assert all(pair["signs"] > 0.9 for pair in found["pairs"])
    assert "from one initialisation" in sparseflow("compare", *runs).out


def test_two_runs_are_compared_and_looked_between(runs: list[Path], sparseflow: CommandLine) -> None:
    found = json.loads(sparseflow("compare", *runs[:2], "--barrier", "--json").out)
    assert found.keys() >= {"rounds", "verdicts", "entries", "barrier"}
    assert found["barrier"]["test"]["instability"] >= 0
    itself = json.loads(sparseflow("compare", runs[0], runs[0], "--barrier", "--json").out)
    assert itself["barrier"]["train"]["loss_barrier"] == 0 and itself["pairs"][0]["overlap"]["of_kept"] == 1.0


def test_one_run_suggests_where_to_rewind(runs: list[Path], sparseflow: CommandLine) -> None:
    found = json.loads(sparseflow("compare", runs[0], "--stability", "0,2", "--json").out)
    assert [one["step"] for one in found["steps"]] == [0, 2] and "rewind_to" in found
    assert sparseflow("compare", runs[0], "--stability", "0,x").error.startswith("sparseflow: --stability: expected")
    assert "expected two runs or more, got 1" in sparseflow("compare", runs[0]).error


def test_the_report_has_what_training_erased(runs: list[Path]) -> None:
    result = json.loads((runs[0] / "result.json").read_text())
    erased = result["instruments"]["erased"]
    assert set(erased) == {"fc1.weight", "fc2.weight", "fc3.weight"}
    assert all(0.5 < one["correlation"] <= 1 for one in erased.values())
    assert result["instruments"]["shared"]["of_kept"] > 0
    html = (runs[0] / "report.html").read_text()
    assert "What training erased" in html and "masks share" in html and "What finding the ticket cost" in html
