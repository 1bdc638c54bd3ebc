"""The table of reproductions: exact rows hold, wrong variants are missed, and what is not there stays open."""

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import CommandLine

from sparseflow.masks import importance
from sparseflow.masks.dynamic import RigL
from sparseflow.reproduction import searches, stable, table
from sparseflow.reproduction.claims import CLAIMS, find_claims
from sparseflow.reproduction.outcome import Outcome, points
from sparseflow.reproduction.parts import Parts, measuring
from sparseflow.reproduction.table import Result, page, read_results, reproduce, reproduce_all
from sparseflow.training import pruning, synflow
from sparseflow.training.round import Round

FAST = [claim for claim in CLAIMS if claim.fast]
TRAINED = [claim for claim in CLAIMS if not claim.fast]
ORDERS = {1: {"test": 0.9, "train": 1.3}, 2: {"test": 0.5, "train": 1.9}, 3: {"test": 0.4, "train": 2.1}}


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path, ThreadPoolExecutor(2), resume=False)


@pytest.mark.parametrize("claim", FAST, ids=lambda claim: claim.row)
def test_an_exact_row_holds(claim: table.Claim, parts: Parts) -> None:
    result = reproduce(claim, parts, [1])
    assert result.status == ("open" if claim.missing else "holds"), result.measured


@pytest.mark.parametrize("claim", TRAINED, ids=lambda claim: claim.row)
def test_what_a_row_trains_can_be_sent_to_a_process(claim: table.Claim) -> None:
    part = claim.load_part()
    assert part is not None and pickle.loads(pickle.dumps(part)) is part


def test_a_row_judges_its_part_by_seed_and_shares_it(monkeypatch: pytest.MonkeyPatch, parts: Parts) -> None:
    asked = []

    def orders(seed: int) -> dict[str, float]:
        asked.append(seed)
        time.sleep(0.01)
        return ORDERS[seed]

    monkeypatch.setattr(stable, "orders", orders)
    (claim,) = find_claims(["7b"])
    assert reproduce(claim, parts, [1, 2]).measured == "test/train 0.90/1.30, 0.50/1.90 points"
    result = reproduce(claim, parts)
    assert (result.status, result.seeds, sorted(asked)) == ("missed", (1, 2, 3), [1, 2, 3])
    assert result.measured.endswith("0.40/2.10 points") and result.seconds >= 0.03
    assert [claim.row for claim in TRAINED if claim.part == "tickets:search"] == ["3", "4", "5", "6"]


def test_what_was_measured_is_taken_again_only_on_resume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def one_order(seed: int) -> float:
        asked.append(seed)
        if seed == 2 and len(asked) == 2:
            raise RuntimeError("killed")
        return 0.0

    monkeypatch.setattr(stable, "one_order", one_order)
    (claim,) = find_claims(["7a"])
    with pytest.raises(RuntimeError):
        reproduce(claim, Parts(tmp_path, ThreadPoolExecutor(1), resume=False), [1, 2])
    resumed = reproduce(claim, Parts(tmp_path, ThreadPoolExecutor(1), resume=True), [1, 2])
    assert resumed.status == "holds" and asked == [1, 2, 2]
    reproduce(claim, Parts(tmp_path, ThreadPoolExecutor(1), resume=False), [1, 2])
    assert asked == [1, 2, 2, 1, 2]


def test_exact_rows_come_first_and_all_parts_begin_together(
    monkeypatch: pytest.MonkeyPatch, parts: Parts, tmp_path: Path
) -> None:
    # Each part waits for the other: one after the other, neither would end.
    both = threading.Barrier(2, timeout=10)

    def orders(seed: int) -> dict[str, float]:
        both.wait()
        return ORDERS[seed]

    def one_order(seed: int) -> float:
        both.wait()
        return 0.0

    monkeypatch.setattr(stable, "orders", orders)
    monkeypatch.setattr(stable, "one_order", one_order)
    found = reproduce_all(find_claims(["7a", "7b", "13"]), tmp_path, parts, [1], show=lambda result: None)
    assert [(one.row, one.status) for one in found] == [("13", "holds"), ("7a", "holds"), ("7b", "holds")]


def test_no_processes_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="processes: expected at least 1, got 0"), measuring(tmp_path, 0):
        pass


def test_every_check_exists_and_every_row_is_there_once() -> None:
    assert all(callable(claim.load()) for claim in CLAIMS)
    rows = [claim.row for claim in CLAIMS]
    assert len(set(rows)) == len(rows)
    assert {int(row.rstrip("ab")) for row in rows} == set(range(1, 22))


def test_another_rounding_misses_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searches, "ROUND_7", [49_327, 6_292, 480])
    assert not searches.schedule(()).holds


def test_a_rewind_that_is_not_exact_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Round.after

    def trap(self: Round, *arguments: object) -> Round:
        made = right(self, *arguments)  # type: ignore[arg-type]
        return replace(made, start={name: tensor * (1 + 1e-6) for name, tensor in made.start.items()})

    monkeypatch.setattr(Round, "after", trap)
    assert not searches.invariants([1]).holds


def test_synflow_at_once_is_missed(monkeypatch: pytest.MonkeyPatch, parts: Parts) -> None:
    (claim,) = find_claims(["12"])
    original = pruning.prune_repeatedly

    def once(*arguments: object, iterations: int, **named: object) -> object:
        return original(*arguments, iterations=1, **named)  # type: ignore[arg-type]

    assert synflow.ITERATIONS == 100
    monkeypatch.setattr(pruning, "prune_repeatedly", once)
    assert reproduce(claim, parts).status == "missed"


def test_importance_that_sees_the_scale_is_missed(monkeypatch: pytest.MonkeyPatch, parts: Parts) -> None:
    monkeypatch.setitem(importance._RULES, "l1", lambda scores: scores)
    (claim,) = find_claims(["19a"])
    assert reproduce(claim, parts).status == "missed"


def test_rigl_that_loses_weights_is_missed(monkeypatch: pytest.MonkeyPatch, parts: Parts) -> None:
    right = RigL.update

    def trap(self: RigL, *arguments: object) -> object:
        masks = dict(right(self, *arguments))  # type: ignore[arg-type]
        masks["fc1.weight"] = masks["fc1.weight"].clone()
        masks["fc1.weight"][tuple(masks["fc1.weight"].nonzero()[0])] = False
        return masks

    monkeypatch.setattr(RigL, "update", trap)
    (claim,) = find_claims(["21a"])
    result = reproduce(claim, parts)
    assert result.status == "missed" and "RigL's counts: no" in result.measured


def test_what_is_not_there_stays_open(parts: Parts) -> None:
    result = reproduce(replace(CLAIMS[0], needs=("sparseflow.masks", "sparseflow.no.such")), parts)
    assert result.status == "open" and result.measured == "needs sparseflow.no.such"


def test_the_table_keeps_what_earlier_runs_found(parts: Parts, tmp_path: Path) -> None:
    shown: list[Result] = []
    reproduce_all(find_claims(["13"]), tmp_path, parts, show=shown.append)
    reproduce_all(find_claims(["1"]), tmp_path, parts, show=shown.append)
    assert [one.row for one in shown] == ["13", "1"]
    assert set(read_results(tmp_path)) == {"1", "13"}
    text = (tmp_path / "reproduction.md").read_text()
    assert f"2 hold, 0 missed, {len(CLAIMS) - 2} open; torch {torch.__version__}." in text
    assert text.count("\n| ") == len(CLAIMS) + 1 and text.count("| not run | open |") == len(CLAIMS) - 2


def test_a_miss_is_shown_as_one() -> None:
    text = page({"3": Result("3", "missed", points([0.1, -0.5]), (1, 2), 3.0)})
    assert "| 1, 2 | -0.20 (+0.10, -0.50) | **missed** | 3.0 |" in text and "0 hold, 1 missed" in text
    # A bar would end the cell.
    assert "\\|mean\\| ≤ 0.7 points" in text


def test_rows_are_found_with_and_without_their_letter() -> None:
    assert [claim.row for claim in find_claims(["10", "7b"])] == ["10a", "10b", "7b"]
    with pytest.raises(ValueError, match="no row '22' to reproduce; rows: 1, 2, 3"):
        find_claims(["22"])


def test_the_command_says_what_it_found(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sparseflow = CommandLine(monkeypatch, capfd)
    done = sparseflow("reproduce", "13", "--out", tmp_path)
    assert done.status == 0 and "holds" in done.out and (tmp_path / "reproduction.md").exists()
    monkeypatch.setattr("sparseflow.reproduction.at_init.erk", lambda seeds: Outcome(False, "off"))
    assert sparseflow("reproduce", "13", "--out", tmp_path).status == 1
    assert sparseflow("reproduce", "13", "--out", tmp_path, "--seeds", "x").status == 2
