"""Timings kept on disk: found again on a machine like this, and never in the way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import mlp, random_masks

import sparseflow as sf
from sparseflow.hardware import cache, routing, timings
from sparseflow.hardware.backends import Backend, Cost
from sparseflow.hardware.plan import Plan
from sparseflow.hardware.timings import Timings
from sparseflow.hardware.workload import Workload

WORK = Workload((3, 4), rows=5)
COST = Cost(1.0, 0.0, 2.5, 0.125, 77, True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, fused: object) -> list[Workload]:
    """The workloads that were measured; each measurement takes a different time."""
    works: list[Workload] = []

    def measure(able: dict[str, Backend], work: Workload) -> dict[str, Cost]:
        works.append(work)
        return {name: replace(COST, forward=float(len(works) + place)) for place, name in enumerate(able)}

    monkeypatch.setattr(routing, "measure", measure)
    return works


@pytest.fixture
def fresh_environment() -> Iterator[None]:
    cache.environment.cache_clear()
    yield
    cache.environment.cache_clear()


def plan(fresh: bool = False, density: float = 0.3) -> Plan:
    torch.manual_seed(0)
    model = mlp()
    return sf.plan(model, random_masks(model, density), torch.randn(4, 12), fresh=fresh)


def costs(plan: Plan) -> list[object]:
    return [row.candidates for row in plan.rows]


def test_what_was_timed_is_found_again(calls: list[Workload], own_cache: Path) -> None:
    first = plan()
    measured = len(calls)
    again = plan()
    assert measured > 2 and len(calls) == measured
    assert costs(again) == costs(first) and again.backends == first.backends
    assert [row.crossover for row in again.rows] == [row.crossover for row in first.rows]
    assert all("measured now" in row.reason for row in first.rows)
    assert all("measured earlier" in row.reason for row in again.rows)
    assert os.listdir(own_cache) == ["timings.json"]


def test_fresh_times_anew_and_is_kept(calls: list[Workload]) -> None:
    plan()
    measured = len(calls)
    fresh = plan(fresh=True)
    assert len(calls) == 2 * measured and all("measured now" in row.reason for row in fresh.rows)
    assert costs(plan()) == costs(fresh)


def test_another_shape_density_or_number_of_threads_is_another_timing(calls: list[Workload]) -> None:
    plan()
    for change in ({"density": 0.6}, {}):
        before = len(calls)
        torch.set_num_threads(1 if change else 2)
        plan(**change)
        assert len(calls) > before
    work = Timings()
    work.put("dense/1/linear", WORK, COST)
    assert work.get("dense/1/linear", WORK) == COST
    for other in (replace(WORK, rows=6), replace(WORK, chained_in=True), replace(WORK, compute_dtype=torch.bfloat16)):
        assert work.get("dense/1/linear", other) is None
    assert work.get("dense/2/linear", WORK) is None


def test_candidates_are_compared_only_with_what_was_timed_beside_them(
    calls: list[Workload], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan()
    calls.clear()
    # Another version of one backend: none of the old timings may be used.
    backend = sf.backends.get("fused")
    monkeypatch.setattr(backend, "layout", lambda work: f"fused/2/{work.geometry}")
    monkeypatch.setattr(backend, "pack", lambda mask, layout: type(backend)().pack(mask, layout.replace("/2/", "/1/")))
    assert all("measured now" in row.reason for row in plan().rows)


@pytest.mark.usefixtures("fresh_environment")
def test_another_machine_or_version_is_another_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Timings()
    kept.put("x", WORK, COST)
    kept.save()
    for name, value in (("_processor", lambda: "another chip"), ("_version", lambda package: "0")):
        with monkeypatch.context() as patched:
            patched.setattr(cache, name, value)
            cache.environment.cache_clear()
            assert Timings().get("x", WORK) is None
    cache.environment.cache_clear()
    assert Timings().get("x", WORK) == COST


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '{"format": "another"}',
        '{"format": "sparseflow timings 1", "timings": []}',
        "[" * 99999,
        "\udce4",
    ],
)
def test_what_is_not_ours_is_ignored_and_rewritten(content: str, own_cache: Path) -> None:
    own_cache.mkdir()
    path = own_cache / "timings.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    kept = Timings()
    assert kept.get("x", WORK) is None
    kept.put("x", WORK, COST)
    kept.save()
    assert Timings().get("x", WORK) == COST
    assert list(own_cache.iterdir()) == [path]


@pytest.mark.parametrize("numbers", [None, 3, [], [1, 2, 3], [1, 2, 3, 4, "5"], [1, 2, -3, 4, 5], [1, 2, 1e999, 4, 5]])
def test_numbers_that_cannot_be_are_ignored(numbers: object, own_cache: Path) -> None:
    own_cache.mkdir()
    key = timings._key("x", WORK)
    content = {"format": "sparseflow timings 1", "timings": {key: numbers}}
    (own_cache / "timings.json").write_text(json.dumps(content))
    assert Timings().get("x", WORK) is None


def test_a_place_that_cannot_be_written_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "below"):
        monkeypatch.setenv("SPARSEFLOW_CACHE_DIR", str(place))
        kept = Timings()
        kept.put("x", WORK, COST)
        kept.save()
        assert kept.get("x", WORK) == COST and Timings().get("x", WORK) is None


def test_a_write_that_fails_leaves_nothing_behind(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    kept = Timings()
    kept.put("x", WORK, COST)
    kept.save()
    assert not list(own_cache.iterdir())


def test_an_empty_variable_turns_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEFLOW_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = Timings()
    kept.put("x", WORK, COST)
    kept.save()
    assert Timings().get("x", WORK) is None and not list(tmp_path.iterdir())


def test_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEFLOW_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert timings._path() == tmp_path / "cache" / "sparseflow" / "timings.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert timings._path() == tmp_path / ".cache" / "sparseflow" / "timings.json"


def test_writers_keep_each_others_timings_and_the_youngest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timings, "_LIMIT", 3)
    first, second = Timings(), Timings()
    first.put("a", WORK, COST)
    first.save()
    second.put("b", WORK, COST)
    second.save()
    assert Timings().get("a", WORK) == Timings().get("b", WORK) == COST
    third = Timings()
    for layout in ("a", "c", "d"):
        third.put(layout, WORK, COST)
    third.save()
    kept = Timings()
    assert [kept.get(layout, WORK) is None for layout in "abcd"] == [False, True, False, False]
