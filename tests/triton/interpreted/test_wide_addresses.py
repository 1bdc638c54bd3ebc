"""Offsets beyond 2**31 elements, in files without contents: they take no more room than the few pages written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparseflow.testing import assert_close
from sparseflow_kernels.triton_coo import forward_coo
from sparseflow_kernels.triton_lines import Lines, linear_lines
from sparseflow_kernels.triton_pack import refresh
from sparseflow_kernels.triton_sddmm import sddmm
from sparseflow_kernels.triton_slices import Slices, slices
from sparseflow_kernels.triton_spmm import INTERPRETED, _add_pieces, _launch, spmm

TOKENS = 8
# Rows between those that are used, of TOKENS elements: the third of them starts beyond 2**31.
DOWN = 2**27 + 16
FAR = DOWN * TOKENS

MASK = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)
WEIGHT = torch.arange(1.0, 10.0).view(3, 3) * MASK
NEAR = torch.arange(1.0, 1 + 3 * TOKENS).view(3, TOKENS).half()
Y = WEIGHT @ NEAR.float()
DVALUES = (NEAR.float() @ NEAR.float().t())[MASK]


def empty_file(folder: Path, dtype: torch.dtype) -> Tensor:
    """(2 DOWN + 1, TOKENS) zeros."""
    name = str(folder / f"{dtype}")
    return torch.from_file(name, shared=True, size=2 * FAR + TOKENS, dtype=dtype).view(-1, TOKENS)


@pytest.fixture
def far(tmp_path: Path) -> Tensor:
    """The same numbers as NEAR, the rows FAR apart."""
    memory = empty_file(tmp_path, torch.float16)[::DOWN]
    return memory.copy_(NEAR)


def structure_of(mask: Tensor, cap: int | None = None) -> tuple[Slices, Tensor]:
    structure = slices(*forward_coo(mask), 4, cap)
    (packed,) = refresh(WEIGHT[:, : mask.shape[1]][mask], [structure.source], torch.float16)
    return structure, packed


def test_columns_of_x(far: Tensor) -> None:
    structure, packed = structure_of(MASK)
    lines = linear_lines(far)
    assert_close(spmm(structure, packed, far, lines, torch.float32), Y, "y")
    assert_close(sddmm(structure, NEAR, far, lines, DVALUES.numel()), DVALUES, "dvalues")


def test_columns_of_a_table(far: Tensor) -> None:
    structure, packed = structure_of(MASK)
    half = TOKENS // 2
    lines = Lines(3, 2, half, 0, linear_lines(far).extent, torch.tensor([0, half]), torch.arange(3) * FAR, half)
    assert_close(spmm(structure, packed, far, lines, torch.float32), Y, "y")
    assert_close(sddmm(structure, NEAR, far, lines, DVALUES.numel()), DVALUES, "dvalues")


def test_lines_of_x(far: Tensor) -> None:
    structure, packed = structure_of(MASK[:, :1])
    lines = Lines(1, 3, TOKENS, 0, linear_lines(far).extent, torch.arange(3) * FAR, torch.tensor([0]), TOKENS)
    y = spmm(structure, packed, far, lines, torch.float32)
    assert_close(y, WEIGHT[:, :1] @ NEAR.float().view(1, -1), "y")
    dvalues = sddmm(structure, NEAR.view(1, -1).expand(3, -1), far, lines, 2)
    assert_close(dvalues, NEAR.float().square().sum().expand(2), "dvalues")


def test_rows_of_dy(far: Tensor) -> None:
    structure, _ = structure_of(MASK)
    assert_close(sddmm(structure, far, NEAR, linear_lines(NEAR), DVALUES.numel()), DVALUES, "dvalues")


def test_rows_of_y(tmp_path: Path) -> None:
    structure, packed = structure_of(MASK)
    targets = torch.where(structure.targets > 0, structure.targets * DOWN, structure.targets)
    structure = dataclasses.replace(structure, rows=2 * DOWN + 1, targets=targets)
    y = empty_file(tmp_path, torch.float16)
    _launch(structure, packed, NEAR, linear_lines(NEAR), None, False, INTERPRETED, y, NEAR.new_empty(0))
    assert_close(y[::DOWN].float(), Y, "y")


def test_pieces_of_rows(tmp_path: Path) -> None:
    structure, packed = structure_of(MASK, cap=1)
    # Row 2, of three pieces, is the last that is split.
    last = structure.targets - structure.rows - (structure.pieces - 3)
    targets = torch.where(last >= 0, structure.rows + last * DOWN, structure.targets)
    structure = dataclasses.replace(structure, targets=targets)
    pieces, y = empty_file(tmp_path, torch.float32), torch.empty(3, TOKENS)
    _launch(structure, packed, NEAR, linear_lines(NEAR), None, False, INTERPRETED, y, pieces)
    assert_close(pieces[::DOWN], WEIGHT[2, :, None] * NEAR.float(), "the pieces of row 2")
    starts = torch.tensor([2 * DOWN, 2 * DOWN + 1]).int()
    structure = dataclasses.replace(structure, split_rows=torch.tensor([1]).int(), split_starts=starts)
    _add_pieces(structure, pieces, None, False, y)
    assert_close(y[1], WEIGHT[2, 2] * NEAR[2].float(), "a row of one piece")
