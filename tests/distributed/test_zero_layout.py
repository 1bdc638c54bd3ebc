"""Where parameters lie in flat shards, against shards that are cut here, element by element."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparseflow_launchers.zero_layout import Run, runs_of_groups, runs_of_parameters

# Marks what no run may read.
PADDING = -1.0


def test_a_parameter_across_two_ranks() -> None:
    # Rank 0 has a0 a1 a2 b0, rank 1 has b1 b2 and, saved without it, two of padding.
    assert list(runs_of_groups([{"a": 3, "b": 3}], [[4], [2]], None)) == [
        Run("a", 0, 0, 0, 0, 3),
        Run("b", 0, 0, 0, 3, 1),
        Run("b", 1, 1, 0, 0, 2),
    ]


def test_parameters_with_gaps_between_them() -> None:
    runs = runs_of_groups([{"a": 3, "b": 2}], [[3], [3]], [[1, 0]])
    assert list(runs) == [Run("a", 0, 0, 0, 0, 3), Run("b", 0, 1, 0, 1, 2)]


def test_stage_3_pads_the_last_parts() -> None:
    # Five weights on three ranks: two, two, one and a padding; then one weight, which only rank 0 has.
    assert list(runs_of_parameters({"a": 5, "b": 1}, [3], 3)) == [
        Run("a", 0, 0, 0, 0, 2),
        Run("a", 2, 1, 0, 0, 2),
        Run("a", 4, 2, 0, 0, 1),
        Run("b", 0, 0, 0, 2, 1),
    ]


def test_stage_3_in_several_flat_tensors() -> None:
    runs = runs_of_parameters({"a": 4, "b": 2}, [1, 2], 2)
    assert [(run.name, run.start, run.rank, run.flat, run.offset, run.count) for run in runs] == [
        ("a", 0, 0, 0, 0, 1),
        ("a", 1, 0, 1, 0, 1),
        ("a", 2, 1, 0, 0, 1),
        ("a", 3, 1, 1, 0, 1),
        ("b", 0, 0, 1, 1, 1),
        ("b", 1, 1, 1, 1, 1),
    ]


@pytest.mark.parametrize("short", [0, 3])
def test_flat_tensors_that_are_too_short(short: int) -> None:
    with pytest.raises(ValueError, match="'a' ends at element 4 of the flat weights, which have"):
        list(runs_of_groups([{"a": 4}], [[short]], None))
    with pytest.raises(ValueError, match="'a' ends at element 4 of the flat weights, which have"):
        list(runs_of_parameters({"a": 4}, [short], 1))


numels = st.lists(st.integers(0, 20), min_size=1, max_size=6)
worlds = st.integers(1, 5)


@given(numels, worlds)
def test_stage_3_reads_back_what_was_cut(sizes: list[int], world: int) -> None:
    whole = _whole(sizes)
    parts: list[list[Tensor]] = [[] for _ in range(world)]
    for tensor in whole.values():
        size = -(-len(tensor) // world)
        padded = torch.cat([tensor, torch.full((size * world - len(tensor),), PADDING)])
        for rank, part in enumerate(padded.split(size) if size else []):
            parts[rank].append(part)
    flats = [torch.cat([*own, torch.empty(0)]) for own in parts]
    runs = runs_of_parameters({name: len(one) for name, one in whole.items()}, [len(flats[0])], world)
    _check(whole, [[flat] for flat in flats], list(runs))


@given(numels, st.lists(st.integers(0, 20), min_size=5, max_size=5), st.integers(0, 3))
def test_groups_read_back_what_was_cut(sizes: list[int], cuts: list[int], gap: int) -> None:
    whole = _whole(sizes)
    spaced = torch.cat([torch.cat([one, torch.full((gap,), PADDING)]) for one in whole.values()])
    bounds = sorted(min(cut, len(spaced)) for cut in cuts)
    flats = list(spaced.tensor_split(bounds))
    groups = [{name: len(one) for name, one in whole.items()}]
    runs = runs_of_groups(groups, [[len(flat)] for flat in flats], [[gap] * len(whole)])
    _check(whole, [[flat] for flat in flats], list(runs))


def _whole(sizes: list[int]) -> dict[str, Tensor]:
    values = torch.arange(sum(sizes), dtype=torch.float32)
    return {f"p{number}": part for number, part in enumerate(values.split(sizes))}


def _check(whole: dict[str, Tensor], flats: list[list[Tensor]], runs: list[Run]) -> None:
    found = {name: torch.full_like(one, PADDING) for name, one in whole.items()}
    for run in runs:
        part = flats[run.rank][run.flat][run.offset : run.offset + run.count]
        found[run.name][run.start : run.start + run.count] = part
    assert all(torch.equal(found[name], one) for name, one in whole.items())
    assert sum(run.count for run in runs) == sum(len(one) for one in whole.values())
