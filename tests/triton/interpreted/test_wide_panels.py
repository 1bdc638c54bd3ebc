"""Offsets beyond 2**31 elements in the products of panels, in files without contents."""

from __future__ import annotations

from pathlib import Path

import torch
from panel_case import coo_of
from test_wide_addresses import DOWN, DVALUES, FAR, MASK, NEAR, TOKENS, WEIGHT, Y, empty_file, far

from sparseflow.testing import assert_close
from sparseflow_kernels.triton_lines import Lines, linear_lines
from sparseflow_kernels.triton_panel import INTERPRETED, _launch, panel_spmm
from sparseflow_kernels.triton_panel_gradient import panel_sddmm
from sparseflow_kernels.triton_panel_pack import fill_panels
from sparseflow_kernels.triton_panels import panels

__all__ = ["far"]

STRUCTURE = panels(*coo_of(MASK), 64)


def packed() -> torch.Tensor:
    return fill_panels(STRUCTURE, WEIGHT[MASK], torch.float16)


def test_columns_of_x(far: torch.Tensor) -> None:
    lines = linear_lines(far)
    assert_close(panel_spmm(STRUCTURE, packed(), far, lines, torch.float32), Y, "y")
    assert_close(panel_sddmm(STRUCTURE, NEAR, far, lines), DVALUES, "dvalues")


def test_columns_of_a_table_and_lines(far: torch.Tensor) -> None:
    half = TOKENS // 2
    lines = Lines(3, 2, half, 0, linear_lines(far).extent, torch.tensor([0, half]), torch.arange(3) * FAR, half)
    assert_close(panel_spmm(STRUCTURE, packed(), far, lines, torch.float32), Y, "y")
    assert_close(panel_sddmm(STRUCTURE, NEAR, far, lines), DVALUES, "dvalues")


def test_rows_of_dy(far: torch.Tensor) -> None:
    assert_close(panel_sddmm(STRUCTURE, far, NEAR, linear_lines(NEAR)), DVALUES, "dvalues")


class FirstTile(Lines):
    """One tile, whose rows of y are as far apart as FAR tokens make them."""

    @property
    def tokens(self) -> int:
        return FAR


def test_rows_of_y(tmp_path: Path) -> None:
    y = empty_file(tmp_path, torch.float16)
    lines = FirstTile(3, 1, TOKENS, TOKENS, NEAR.numel())
    _launch(STRUCTURE, packed(), NEAR, lines, None, False, INTERPRETED, y)
    assert_close(y[::DOWN].float(), Y, "y")
