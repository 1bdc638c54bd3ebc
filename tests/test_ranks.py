"""What one rank meets, all hear of, as the same kind of error."""

from __future__ import annotations

from pathlib import Path

import pytest
from threaded import together

from sparseflow.files.commit import validate
from sparseflow.files.manifest import CommitError
from sparseflow.ranks import ALONE, Ranks, RanksDifferError


def test_values_go_round() -> None:
    def work(ranks: Ranks) -> object:
        return ranks.gather(ranks.rank), ranks.broadcast([ranks.rank]), ranks.first(lambda: ranks.rank + 7)

    assert together(3, work) == [([0, 1, 2], [0], 7)] * 3
    assert work(ALONE) == ([0], [0], 7)


def test_each_gives_everybody_its_own() -> None:
    assert together(3, lambda ranks: ranks.each(lambda: [ranks.rank])) == [[0], [1], [2]]


@pytest.mark.parametrize("method", ["first", "each"])
def test_an_error_is_the_same_kind_on_all(tmp_path: Path, method: str) -> None:
    """CommitError is a ValueError of ours: those who only hear of it get a ValueError, which has the same status."""
    found = together(3, lambda ranks: getattr(ranks, method)(lambda: validate(tmp_path / "missing")))
    assert isinstance(found[0], CommitError)
    assert all(isinstance(error, ValueError) and "missing" in str(error) for error in found)


def test_an_error_of_one_rank_says_whose_it_is() -> None:
    def fail(ranks: Ranks) -> None:
        if ranks.rank == 2:
            raise FileNotFoundError("no such data")

    found = together(3, lambda ranks: ranks.each(lambda: fail(ranks)))
    assert all(isinstance(error, FileNotFoundError) for error in found)
    assert [str(error) for error in found] == ["no such data (rank 2)"] * 2 + ["no such data"]


def test_ranks_that_differ_are_named() -> None:
    found = together(3, lambda ranks: ranks.check_same("masks", ranks.rank // 2))
    assert all(isinstance(error, RanksDifferError) and "masks: rank 2 differs" in str(error) for error in found)
