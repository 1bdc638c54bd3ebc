"""The index arrays of a mask against the same sorted by torch."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow_kernels.cpu_structure import places, structure

sizes = st.integers(1, 70)


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, st.integers(1, 80), st.integers(1, 80), st.sampled_from([0.0, 0.02, 0.3, 1.0]), st.integers(0, 99))
def test_both_orders_are_those_of_a_stable_sort(
    outputs: int, inputs: int, forward: int, backward: int, density: float, seed: int
) -> None:
    mask = torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(seed)) < density
    found = structure(mask, forward, backward)
    row, column = mask.nonzero().unbind(1)
    by_block = (column // forward * outputs + row).argsort(stable=True)
    in_columns = (row // backward * inputs + column).argsort(stable=True)
    place = torch.empty_like(in_columns)
    place[in_columns] = torch.arange(in_columns.numel())
    assert torch.equal(found.rows.long(), row[in_columns])
    assert torch.equal(found.columns.long(), column[by_block])
    assert torch.equal(found.order.long(), place[by_block])
    assert (found.outputs, found.inputs, found.nnz) == (outputs, inputs, int(mask.sum()))


@settings(deadline=None, max_examples=20)
@given(sizes, sizes, st.integers(1, 80), st.integers(0, 99))
def test_pointers_delimit_the_rows_of_each_block(outputs: int, inputs: int, block: int, seed: int) -> None:
    mask = torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(seed)) < 0.3
    found = structure(mask, block, block)
    columns = torch.stack([part.sum(1) for part in mask.split(block, 1)])
    rows = torch.stack([part.sum(0) for part in mask.split(block, 0)])
    assert torch.equal(found.row_pointers.diff(dim=1).long(), columns)
    assert torch.equal(found.column_pointers.diff(dim=1).long(), rows)
    assert torch.equal(found.row_pointers[1:, 0], found.row_pointers[:-1, -1])
    assert torch.equal(found.row_work.diff().long(), mask.sum(1))
    assert torch.equal(found.column_work.diff().long(), mask.sum(0))


@settings(deadline=None, max_examples=20)
@given(sizes, sizes, st.integers(1, 80), st.integers(0, 99))
def test_places_are_those_of_the_values(outputs: int, inputs: int, block: int, seed: int) -> None:
    mask = torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(seed)) < 0.3
    row, column = mask.nonzero().unbind(1)
    in_columns = (row // block * inputs + column).argsort(stable=True)
    assert torch.equal(places(structure(mask, block, block)), (row * inputs + column)[in_columns])
