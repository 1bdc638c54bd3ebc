"""Convolutions through lines: all three products against float64, for every geometry."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparseflow.testing import assert_close
from sparseflow.testing.placement import bordered
from sparseflow_kernels import reference
from sparseflow_kernels.triton_conv import (
    conv_axes,
    conv_gradient,
    conv_input,
    conv_lines,
    dgrad_lines,
    interleaved,
)
from sparseflow_kernels.triton_coo import conv_dgrad_coo, forward_coo
from sparseflow_kernels.triton_pack import refresh
from sparseflow_kernels.triton_sddmm import sddmm
from sparseflow_kernels.triton_slices import slices
from sparseflow_kernels.triton_spmm import SpmmConfig, spmm

Pair = tuple[int, int]

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@dataclass
class Case:
    """A convolution of `images` images with random numbers; groups of 2 channels to 3 outputs."""

    image: Pair = (6, 7)
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1
    images: int = 3
    density: float = 0.5
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        shape = (3 * self.groups, 2, *self.kernel)
        self.mask = torch.rand(shape, generator=self.generator) < self.density
        self.weight = self.random(*shape)
        self.x = self.random(self.images, 2 * self.groups, *self.image)
        self.axes = conv_axes(self.image, self.kernel, self.stride, self.padding, self.dilation)
        self.dy = self.random(self.images, 3 * self.groups, self.axes[0].out, self.axes[1].out)

    def random(self, *shape: int) -> Tensor:
        """Of both signs but positive in the mean: of a sum that cancels, rounding alone would be compared."""
        return (2 * torch.rand(shape, generator=self.generator) - 0.5).to(self.dtype)

    @property
    def geometry(self) -> tuple[Pair, Pair, Pair, int]:
        return self.stride, self.padding, self.dilation, self.groups

    def forward(self, config: SpmmConfig | None = None) -> Tensor:
        structure = slices(*forward_coo(self.mask, self.groups), 4)
        (packed,) = refresh(self.weight[self.mask], [structure.source], self.dtype)
        lines = conv_lines(self.axes, self.x.shape[1], self.images, self.x.device)
        y = spmm(structure, packed, bordered(conv_input(self.x, self.axes)), lines, self.dtype, config=config)
        return y.view(self.dy.shape[1], *self.dy.shape[2:], self.images).permute(3, 0, 1, 2)

    def dgrad(self) -> Tensor:
        structure = slices(*conv_dgrad_coo(self.mask, self.axes, self.groups), 4)
        (packed,) = refresh(self.weight[self.mask], [structure.source], self.dtype)
        lines = dgrad_lines(self.axes, self.dy.shape[1], self.images, self.dy.device)
        phases = spmm(structure, packed, bordered(conv_gradient(self.dy, self.axes)), lines, self.dtype)
        return interleaved(phases, self.axes, self.images)

    def wgrad(self) -> Tensor:
        structure = slices(*forward_coo(self.mask, self.groups), 4)
        lines = conv_lines(self.axes, self.x.shape[1], self.images, self.x.device)
        dy = bordered(self.dy.permute(1, 2, 3, 0).reshape(self.dy.shape[1], -1))
        return sddmm(structure, dy, bordered(conv_input(self.x, self.axes)), lines, int(self.mask.sum()))

    def check(self) -> None:
        y = reference.conv2d(self.x, self.weight, self.mask, None, *self.geometry)
        dx, dweight = reference.conv2d_backward(self.dy, self.x, self.weight, self.mask, *self.geometry)
        assert_close(self.forward(), y, "y")
        assert_close(self.dgrad(), dx, "dx")
        assert_close(self.wgrad(), dweight[self.mask], "dvalues")


@settings(deadline=None, max_examples=25)
@given(
    case=st.builds(
        Case,
        image=st.tuples(st.integers(7, 10), st.integers(7, 10)),
        kernel=pairs,
        stride=pairs,
        padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
        dilation=pairs,
        groups=st.sampled_from([1, 2]),
        images=st.sampled_from([1, 3]),
        density=st.sampled_from([0.0, 0.3, 1.0]),
    )
)
def test_every_geometry_is_that_of_float64(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_of_16_bits(dtype: torch.dtype) -> None:
    Case(stride=(2, 1), groups=2, dtype=dtype).check()


def test_tiles_smaller_than_lines() -> None:
    case = Case(images=16, padding=(1, 0))
    expected = reference.conv2d(case.x, case.weight, case.mask, None, *case.geometry)
    assert_close(case.forward(SpmmConfig(4, 16, 2)), expected, "y")


def test_images_that_serve_as_they_are_are_not_copied() -> None:
    case = Case(kernel=(1, 1), padding=(0, 0))
    x, dy = (tensor.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2) for tensor in (case.x, case.dy))
    assert conv_input(x, case.axes).data_ptr() == x.data_ptr()
    assert conv_gradient(dy, case.axes).data_ptr() == dy.data_ptr()
    assert conv_lines(case.axes, 2, 3, x.device).count == 1


def test_a_stride_wastes_no_work() -> None:
    case = Case(stride=(2, 2), density=1.0)
    rows, _, _, shape = conv_dgrad_coo(case.mask, case.axes)
    # Of 3 taps, the phase that the padded centre lies in has 1 and the other 2.
    assert shape == (2 * 2 * 2, 3 * 9)
    assert rows.bincount(minlength=8).tolist() == [3, 3, 6, 6, 6, 6, 12, 12]


def test_kernels_larger_than_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least as large as the kernel \(3, 3\) after padding, got \(2, 5\)"):
        conv_axes((2, 5), (3, 3), (1, 1), (0, 0), (1, 1))
