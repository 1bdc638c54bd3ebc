"""The structure of panels, in plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from panel_case import coo_of, packed_by_hand

from sparseflow_kernels.triton_panels import CHUNK, STEP, panels


def unpacked(structure, packed):
    """The dense matrix, from nothing but the packed weights and the columns of the slots."""
    dense = torch.zeros(structure.count * structure.height, structure.columns)
    tiles = packed.view(-1, structure.height, CHUNK)
    for panel in range(structure.count):
        start, width = int(structure.starts[panel]), int(structure.widths[panel])
        for slot in range(start, start + width):
            column = int(structure.index[slot]) & (0xFFFF if structure.index.dtype == torch.int16 else -1)
            rows = slice(panel * structure.height, (panel + 1) * structure.height)
            dense[rows, column] += tiles[slot // CHUNK, :, slot % CHUNK]
    return dense[: structure.rows]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 150), st.integers(1, 100), st.sampled_from([0.0, 0.02, 0.3, 1.0]), st.sampled_from([64, 128]),
    st.integers(0, 2**31),
)  # fmt: skip
def test_packed_weights_are_the_matrix(rows, columns, density, height, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) < density
    values = torch.rand(int(mask.sum()), generator=generator) + 1
    structure = panels(*coo_of(mask), height)
    weight = torch.zeros(rows, columns).masked_scatter_(mask, values)
    assert torch.equal(unpacked(structure, packed_by_hand(structure, values)), weight)
    assert structure.nnz == values.numel()
    assert torch.all(structure.starts % STEP == 0)


def test_literal_mask():
    mask = torch.zeros(65, 5, dtype=torch.bool)
    for row, column in ((0, 3), (33, 3), (2, 1), (64, 4)):
        mask[row, column] = True
    structure = panels(*coo_of(mask), 64)
    assert structure.starts.tolist() == [0, 64, 128]
    assert structure.widths.tolist() == [2, 1]
    assert structure.longest == 64
    assert structure.index[:3].tolist() == [1, 3, 0]
    assert structure.index[64] == 4
    # By slot and row: (2, 1), (0, 3), (33, 3), (64, 4); row-major they are the second, the first, ...
    assert structure.source.tolist() == [1, 0, 2, 3]
    assert structure.target.tolist() == [2 * CHUNK, 1, 33 * CHUNK + 1, 2 * 64 * CHUNK]
    assert structure.kept[:2].tolist() == [[4, 0], [1, 2]]
    assert structure.first[:2].tolist() == [[0, 1], [1, 2]]


def test_the_last_row_of_a_word_is_a_sign_bit():
    mask = torch.zeros(32, 1, dtype=torch.bool)
    mask[31] = True
    assert panels(*coo_of(mask), 64).kept[0].tolist() == [-(2**31), 0]


def test_the_order_of_the_nonzeros_does_not_matter():
    mask = torch.rand(70, 40, generator=torch.Generator().manual_seed(0)) < 0.2
    rows, columns, places, shape = coo_of(mask)
    order = torch.randperm(rows.numel(), generator=torch.Generator().manual_seed(1))
    one = panels(rows, columns, places, shape, 64)
    other = panels(rows[order], columns[order], places[order], shape, 64)
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


@pytest.mark.parametrize("columns", [2**16, 2**16 + 1])
def test_columns_take_16_bits_where_they_fit(columns):
    place = torch.tensor([columns - 1])
    structure = panels(torch.tensor([0]), place, torch.tensor([0]), (1, columns), 64)
    assert structure.index.dtype == (torch.int16 if columns == 2**16 else torch.int32)
    assert int(structure.index[0]) & 0x1FFFF == (0x1FFFF if columns == 2**16 else columns - 1)


def test_with_tensors_is_the_same_structure():
    structure = panels(*coo_of(torch.ones(3, 4, dtype=torch.bool)), 64)
    copied = structure.with_tensors({name: tensor.clone() for name, tensor in structure.tensors().items()})
    assert (copied.rows, copied.columns, copied.height, copied.longest) == (3, 4, 64, 64)
    assert copied.nbytes == structure.nbytes > 0
    assert torch.equal(copied.target, structure.target)


def test_an_unknown_height_is_refused():
    with pytest.raises(ValueError, match=r"expected one of \(64, 128\), got 32"):
        panels(*coo_of(torch.ones(3, 4, dtype=torch.bool)), 32)


def test_what_32_bits_cannot_number_is_refused():
    # Each panel keeps all of its columns.
    rows = (torch.arange(2**18) % 2**8) * 128
    with pytest.raises(ValueError, match=r"packed weights: expected fewer than 2\*\*31"):
        columns = torch.arange(2**18) // 2**8 * 128
        panels(rows.repeat(128), (columns + torch.arange(128)[:, None]).flatten(), rows, (2**15, 2**17), 128)
