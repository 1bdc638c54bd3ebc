"""Killed anywhere and started again, a search on sf.stream ends with the bits of one that ran through."""

from pathlib import Path

import pytest
from crashing import STREAM_POINTS, launch, random_kills, search_streamed, weights_in
from leavings import left_in

# All points and many more kills are `tools/soak_kills.py`.
IN_SHORT = (
    "weights are half updated",
    "a checkpoint is saved and the store is not",
    "a store's manifest is renamed",
    "one layer has its mask",
    "a round is recorded and the store is not",
    "a control is half trained",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "search"
    assert launch(folder, 1, work=search_streamed).well
    return {**left_in(folder), "weights": weights_in(folder)}


@pytest.mark.parametrize("name", IN_SHORT)
def test_killed_at_a_point(tmp_path: Path, uninterrupted: dict[str, object], name: str) -> None:
    killed = launch(tmp_path / "search", 1, STREAM_POINTS[name], search_streamed)
    assert killed.reached and not killed.well
    assert launch(tmp_path / "search", 1, work=search_streamed).well
    found = {**left_in(tmp_path / "search"), "weights": weights_in(tmp_path / "search")}
    assert found == uninterrupted


def test_killed_at_random(tmp_path: Path, uninterrupted: dict[str, object]) -> None:
    """Until two kills have hit it before its end, wherever it was."""
    folder, hits = tmp_path / "search", 0
    for seed in range(10):
        one = folder.with_name(f"search-{seed}")
        hits += random_kills(one, 1, 2 - hits, seed, 0.4, search_streamed)
        assert launch(one, 1, work=search_streamed).well
        assert {**left_in(one), "weights": weights_in(one)} == uninterrupted
        if hits == 2:
            return
    pytest.fail(f"only {hits} of 2 kills hit the search before its end")
