"""The machine model against publications, by the command that prints it."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import CommandLine

from sparseflow.bench.stream_validation import markdown, validation
from sparseflow.hardware.wafer.calibration import analytic, analytic_samples_per_second, fit, predicted_step
from sparseflow.hardware.wafer.published import ACCOUNTS, RUNS

PAGE = Path(__file__).parents[2] / "docs" / "stream.md"
GPT_J = "model: {blocks: 28, width: 4096, sequence: 2048, vocabulary: 50400}\n"


@pytest.fixture
def sparseflow(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capfd)


def test_the_fit_meets_its_two_runs_and_is_fitted_to_no_other() -> None:
    calibrated = [run for run in RUNS if run.use == "calibrated"]
    assert [(run.name, run.batch) for run in calibrated] == [
        ("BERT-large, sequence 128", 1024),
        ("BERT-large, sequence 128", 512),
    ]
    for run in calibrated:
        assert predicted_step(run).samples_per_second == pytest.approx(run.samples_per_second)
        assert analytic_samples_per_second(run) == pytest.approx(run.samples_per_second)
    utilisation, fixed = fit()
    assert 0.1 < utilisation < 1 and 0 < fixed < 0.2
    assert analytic() == (pytest.approx(1.70e15, rel=3e-3), pytest.approx(95.6e-3, rel=1e-3))


def test_the_simplest_models_errors_are_those_of_the_research() -> None:
    errors = [analytic_samples_per_second(run) / run.samples_per_second - 1 for run in RUNS[2:6]]
    assert errors == pytest.approx([0.071, -0.032, -0.072, 0.54], abs=2e-3)


def test_the_closed_forms_errors_are_not_hidden(sparseflow: CommandLine) -> None:
    said = sparseflow("bench", "--backend", "stream", "--validate").out
    for run in RUNS:
        (line,) = (one for one in said.splitlines() if f"{run.name}, batch {run.batch}," in one and run.source in one)
        predicted = predicted_step(run).samples_per_second
        error = f"{abs(predicted / run.samples_per_second - 1):.1%}".replace("%", " %")
        assert f"{run.samples_per_second:.2f}" in line and f"{predicted:.2f}" in line and error in line
        assert run.use in line
    checks = [predicted_step(run).samples_per_second / run.samples_per_second - 1 for run in RUNS[2:5]]
    # What came out; see the choices that the command prints. Not a promise.
    assert checks == pytest.approx([0.220, 0.089, 0.095], abs=2e-3)


def test_accounting_is_exact_where_it_was_published() -> None:
    stated = [account for account in ACCOUNTS if account.stated is not None]
    assert len(stated) == 4 and all(account.agrees for account in stated)
    counted = [account.counted for account in ACCOUNTS]
    assert counted[:5] == pytest.approx([59.91, 2.494, 3.025, 4.34, 1.665], abs=5e-3) and counted[5] is None


def test_a_statement_that_our_count_misses_would_differ() -> None:
    assert not replace(ACCOUNTS[0], counted=61.0).agrees


def test_unread_figures_stand_open(sparseflow: CommandLine) -> None:
    found = json.loads(sparseflow("bench", "--backend", "stream", "--validate", "--json").out)
    assert found["modelled"] is True
    parts = {part["title"]: part for part in found["validation"]}
    assert parts.keys() == {"Throughput of dense training", "Statements about accounting", "Open", "Choices"}
    assert any("12k × 12k" in row[0] for row in parts["Open"]["rows"])
    assert sum("open" in row[-1] for row in parts["Throughput of dense training"]["rows"]) == 4
    assert sum("open" in row[-1] for row in parts["Statements about accounting"]["rows"]) == 2
    assert len(parts["Choices"]["rows"]) == 7


def test_the_page_has_what_the_command_prints() -> None:
    found = re.search(r"<!-- validate: .*? -->\n(.*)<!-- /validate -->", PAGE.read_text(), re.DOTALL)
    assert found is not None, "fill docs/stream.md with tools/stream_table.py"
    assert found[1].strip() == markdown(validation()), "run tools/stream_table.py"


def test_the_page_has_what_was_measured() -> None:
    spec = importlib.util.spec_from_file_location("stream_table", PAGE.parent.parent / "tools" / "stream_table.py")
    assert spec is not None and spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    run = json.loads((PAGE.parent / "benchmarks" / "stream.json").read_text())
    assert table.measured(run) in PAGE.read_text(), "run tools/stream_table.py"
    # A miss is shown as one, by the median.
    missed = {"name": "a", "unit": "x", "limit": 1.5, "at_least": True, "quartiles": [1.2, 1.4, 1.6]}
    assert table.measured({**run, "figures": [missed]}).splitlines()[2] == (
        "| a | 1.40 [1.20, 1.60] x | ≥ 1.5, **missed** |"
    )


def test_a_workload_is_predicted_with_its_parts(tmp_path: Path, sparseflow: CommandLine) -> None:
    file = tmp_path / "gpt-j.yaml"
    file.write_text(GPT_J + "batch: 66\n")
    said = sparseflow("bench", "--backend", "stream", "--workload", file)
    assert said.status == 0 and said.out.startswith("modelled: a step of 66 samples on 1 × cs2 (WSE-2)")
    data = json.loads(sparseflow("bench", "--backend", "stream", "--workload", file, "--json").out)["prediction"]
    assert data["samples_per_second"] == pytest.approx(predicted_step(RUNS[2]).samples_per_second)
    file.write_text(GPT_J + "batch: 264\nsystem: cs3\nsystems: 4\ndensity: 0.1\ndensest: 0.5\nmicro_batch: 33\n")
    out = tmp_path / "step.json"
    assert sparseflow("bench", "--backend", "stream", "--workload", file, "--out", out).status == 0
    data = json.loads(out.read_text())["prediction"]
    assert (data["system"], data["systems"], data["micro_batches"]) == ("cs3", 4, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch: 8\n", "model: Field required"),
        (GPT_J + "batch: 8\nspeed: 1\n", "speed: Extra inputs are not permitted; got 1"),
        (GPT_J + "batch: eight\n", "batch: Input should be a valid integer; got 'eight'"),
        (GPT_J + "batch: 8\nsystem: cs9\n", "no system 'cs9'; available: cs2, cs3"),
        (GPT_J + "batch: 800\nmicro_batch: 800\n", "a micro-batch of 381 fits"),
        ("[", "expected a workload as YAML"),
    ],
)
def test_a_wrong_workload_is_one_line(text: str, message: str, tmp_path: Path, sparseflow: CommandLine) -> None:
    file = tmp_path / "workload.yaml"
    file.write_text(text)
    assert message in sparseflow("bench", "--backend", "stream", "--workload", file).error


def test_options_that_do_not_go_together_are_refused(sparseflow: CommandLine) -> None:
    assert "go with --backend stream" in sparseflow("bench", "--validate").error
    assert "choose from: cpu, stream" in sparseflow("bench", "--backend", "tritn").error
