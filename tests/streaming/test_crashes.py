"""Killed anywhere and started again, a training ends with the bits of one that ran through.

A crash loses what came after the last commit, and nothing else. Many more kills are `tools/soak_kills.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from crashing_stores import POINTS, is_a_commit, launch, left_in, random_kills


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "store"
    assert launch(folder).status == 0
    return left_in(folder)


@pytest.mark.parametrize("name", POINTS)
def test_killed_at_a_point(tmp_path: Path, uninterrupted: dict[str, object], name: str) -> None:
    folder = tmp_path / "store"
    killed = launch(folder, POINTS[name])
    assert killed.reached and killed.status == -9
    assert is_a_commit(folder)
    assert launch(folder).status == 0
    assert left_in(folder) == uninterrupted


def test_killed_at_random(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    """Until three kills have hit it before its end, wherever it was."""
    hits = 0
    for seed in range(10):
        folder = tmp_path / f"store-{seed}"
        hits += random_kills(folder, 3 - hits, seed, seconds=0.05)
        assert launch(folder).status == 0
        assert left_in(folder) == uninterrupted
        if hits == 3:
            return
    pytest.fail(f"only {hits} of 3 kills hit the training before its end")
