"""Slices: every kept weight stands in one slot, rows are sorted and split, and the arrays are as defined."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow_kernels.triton_coo import forward_coo, linear_dgrad_coo
from sparseflow_kernels.triton_slices import GROUP, Slices, slices


def kept(structure: Slices) -> dict[int, tuple[int, int, int]]:
    """For each value's place: its row, its column and its lane, read as the docstring of the module says."""
    found: dict[int, tuple[int, int, int]] = {}
    for lane, length in enumerate(structure.lengths.tolist()):
        slice, within = divmod(lane, structure.height)
        for step in range(length):
            slot = (step // GROUP * structure.height + within) * GROUP + step % GROUP + int(structure.starts[slice])
            column = int(structure.index[slot]) & 0xFFFF
            found[int(structure.source[slot])] = (int(structure.lane_rows[lane]), column, lane)
    return found


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(0, 20),
    columns=st.integers(0, 20),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    height=st.sampled_from([1, 4, 16]),
    cap=st.sampled_from([None, 1, 3, 8]),
    seed=st.integers(0, 10**6),
)
def test_every_kept_weight_has_one_slot(
    rows: int, columns: int, density: float, height: int, cap: int | None, seed: int
) -> None:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    structure = slices(*forward_coo(mask), height, cap)
    places = kept(structure)
    assert [places[z][:2] for z in range(len(places))] == [tuple(pair) for pair in mask.nonzero().tolist()]
    assert int((structure.source >= 0).sum()) == len(places)
    assert structure.steps == int(structure.lengths[:1].sum())
    assert (structure.lengths.diff() <= 0).all()
    assert structure.steps <= (cap or 256)
    _check_targets(structure, rows)
    lanes = [lane for _, (_, _, lane) in sorted(places.items())]
    # In canonical order, a lane's columns follow each other: the lane changes once for each.
    assert sum(a != b for a, b in pairwise(lanes)) + bool(lanes) == len(set(lanes))


def _check_targets(structure: Slices, rows: int) -> None:
    """Each row is the target of one lane, or all its pieces are; lanes of padding have none."""
    targets, owners = structure.targets.tolist(), structure.lane_rows.tolist()
    whole = [target for target in targets if 0 <= target < rows]
    assert sorted(whole + structure.split_rows.tolist()) == list(range(rows))
    starts = structure.split_starts.tolist()
    for row, (first, last) in zip(structure.split_rows.tolist(), pairwise(starts)):
        assert last - first > 1
        assert all(owners[targets.index(rows + piece)] == row for piece in range(first, last))
    assert starts[-1] == structure.pieces == sum(target >= rows for target in targets)


def test_the_arrays_of_a_small_mask() -> None:
    mask = torch.tensor([[0, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    structure = slices(*forward_coo(mask), 2)
    assert structure.targets.tolist() == [1, 0, 2, -1]
    assert structure.lengths.tolist() == [3, 1, 0, 0]
    assert structure.starts.tolist() == [0, 8, 8]
    assert structure.index.tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert structure.source.tolist() == [1, 2, 3, -1, 0, -1, -1, -1]
    assert structure.split_rows.tolist() == [] and structure.split_starts.tolist() == [0]


def test_the_arrays_of_a_split_row() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 0, 0]], dtype=torch.bool)
    structure = slices(*forward_coo(mask), 4, cap=2)
    assert structure.targets.tolist() == [2, 3, 4, 1]
    assert structure.lane_rows.tolist() == [0, 0, 0, 1]
    assert structure.lengths.tolist() == [2, 2, 1, 1]
    assert structure.split_rows.tolist() == [0] and structure.split_starts.tolist() == [0, 3]
    assert structure.pieces == 3


def test_the_input_gradient_reads_the_transposed_mask() -> None:
    mask = torch.tensor([[0, 1], [1, 1]], dtype=torch.bool)
    rows, columns, places, shape = linear_dgrad_coo(mask)
    assert (rows.tolist(), columns.tolist(), places.tolist(), shape) == ([0, 1, 1], [1, 0, 1], [1, 0, 2], (2, 2))


def test_groups_are_blocks_of_the_diagonal() -> None:
    _, columns, _, shape = forward_coo(torch.ones(4, 1, 1, 2, dtype=torch.bool), groups=2)
    assert columns.tolist() == [0, 1, 0, 1, 2, 3, 2, 3] and shape == (4, 4)


def test_tensors_come_back() -> None:
    structure = slices(*forward_coo(torch.ones(3, 4, dtype=torch.bool)), 2)
    moved = structure.with_tensors({name: tensor.clone() for name, tensor in structure.tensors().items()})
    assert kept(moved) == kept(structure)
    assert moved.nbytes == structure.nbytes == sum(tensor.nbytes for tensor in structure.tensors().values())


def test_impossible_sizes_are_refused() -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="height of 1, 2, 4"):
        slices(nothing, nothing, nothing, (2, 2), 3)
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 columns, got 2147483648"):
        slices(nothing, nothing, nothing, (2, 2**31), 2)
