"""Killed anywhere and started again, a search ends with the bits of one that ran through."""

from pathlib import Path

import pytest
from crashing import POINTS, launch, random_kills
from leavings import left_in

# Two processes; one alone, all combinations and many more kills are `tools/soak_kills.py`.
WORLD = 2


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "search"
    assert launch(folder, WORLD).well
    return left_in(folder)


@pytest.mark.parametrize("name", POINTS)
def test_killed_at_a_point(tmp_path: Path, uninterrupted: dict[str, object], name: str) -> None:
    killed = launch(tmp_path / "search", WORLD, POINTS[name])
    assert killed.reached and not killed.well
    assert launch(tmp_path / "search", WORLD).well
    assert left_in(tmp_path / "search") == uninterrupted


def test_killed_at_random(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    """Until five kills have hit it before its end, wherever it was."""
    folder, hits = tmp_path / "search", 0
    for seed in range(10):
        hits += random_kills(folder.with_name(f"search-{seed}"), WORLD, 5 - hits, seed, seconds=0.5)
        assert launch(folder.with_name(f"search-{seed}"), WORLD).well
        assert left_in(folder.with_name(f"search-{seed}")) == uninterrupted
        if hits == 5:
            return
    pytest.fail(f"only {hits} of 5 kills hit the search before its end")
