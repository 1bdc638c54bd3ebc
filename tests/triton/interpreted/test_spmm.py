"""The forward and the input gradient of linear layers against float64, for every way of cutting the work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_layer import LinearLayer
from torch import Tensor

from sparseflow.testing import assert_close
from sparseflow.testing.closeness import same_bits
from sparseflow.testing.placement import bordered
from sparseflow_kernels import reference, triton_spmm
from sparseflow_kernels.triton_coo import forward_coo
from sparseflow_kernels.triton_lines import linear_lines
from sparseflow_kernels.triton_pack import refresh
from sparseflow_kernels.triton_slices import Slices, slices
from sparseflow_kernels.triton_spmm import SpmmConfig, spmm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

layers = st.builds(
    LinearLayer,
    outputs=st.sampled_from([1, 7, 33]),
    inputs=st.sampled_from([1, 6, 33]),
    tokens=st.sampled_from([1, 5, 33, 64]),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    height=st.sampled_from([4, 32]),
    cap=st.sampled_from([None, 3, 8]),
    gaps=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10**6),
)
configs = st.builds(
    SpmmConfig,
    lanes=st.sampled_from([8, 64]),
    tokens=st.sampled_from([32, 64]),
    repeat=st.sampled_from([1, 2]),
    programs=st.sampled_from([0, 1, 3]),
)


def product(structure: Slices, layer: LinearLayer, x: Tensor, config: SpmmConfig | None = None) -> Tensor:
    (packed,) = refresh(layer.values, [structure.source], layer.dtype)
    return spmm(structure, packed, x, linear_lines(x), layer.dtype, config=config)


@settings(deadline=None, max_examples=25)
@given(layer=layers, config=configs, biased=st.booleans(), relu=st.booleans())
def test_the_forward_is_that_of_float64(layer: LinearLayer, config: SpmmConfig, biased: bool, relu: bool) -> None:
    structure, bias = layer.forward_slices, layer.bias if biased else None
    (packed,) = refresh(layer.values, [structure.source], layer.dtype)
    y = spmm(structure, packed, layer.x, linear_lines(layer.x), layer.dtype, bias, relu, config)
    expected = reference.linear(layer.x.t(), layer.weight, layer.mask, bias).t()
    assert_close(y, expected.relu() if relu else expected, "y")


@settings(deadline=None, max_examples=12)
@given(layer=layers)
def test_the_input_gradient_is_that_of_float64(layer: LinearLayer) -> None:
    dx, _ = reference.linear_backward(layer.dy.t(), layer.x.t(), layer.weight, layer.mask)
    assert_close(product(layer.dgrad_slices, layer, layer.dy), dx.t(), "dx")


@pytest.mark.parametrize("size", [1, 33, 63, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_sizes_with_the_default_configuration(size: int, dtype: torch.dtype) -> None:
    layer = LinearLayer(size, size, size, min(1.0, 4 / size), height=128, dtype=dtype)
    expected = reference.linear(layer.x.t(), layer.weight, layer.mask).t()
    assert_close(product(layer.forward_slices, layer, layer.x), expected, "y")


def test_columns_of_more_than_15_bits() -> None:
    layer = LinearLayer(3, 2**16, 16, 0.001)
    expected = reference.linear(layer.x.t(), layer.weight, layer.mask).t()
    assert layer.forward_slices.index.dtype == torch.int16
    assert_close(product(layer.forward_slices, layer, layer.x), expected, "y")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_of_more_than_16_bits(dtype: torch.dtype) -> None:
    layer = LinearLayer(3, 2**16 + 1, 16, 0.001, dtype=dtype)
    expected = reference.linear(layer.x.t(), layer.weight, layer.mask).t()
    assert layer.forward_slices.index.dtype == torch.int32
    assert_close(product(layer.forward_slices, layer, layer.x), expected, "y")


def test_dtypes_may_differ() -> None:
    layer = LinearLayer(20, 30, 40, 0.3)
    structure, x = layer.forward_slices, layer.x.to(torch.float16)
    (packed,) = refresh(layer.values, [structure.source], torch.bfloat16)
    y = spmm(structure, packed, x, linear_lines(x), torch.float32, layer.bias.to(torch.float16))
    weight = torch.zeros_like(layer.weight)
    weight[layer.mask] = unpacked(structure, packed)
    assert_close(y, reference.linear(x.t(), weight, layer.mask, layer.bias.to(torch.float16)).t(), "y")


def unpacked(structure: Slices, packed: Tensor) -> Tensor:
    """Packed values in canonical order, as float32."""
    is_value = structure.source >= 0
    return packed[is_value][structure.source[is_value].argsort()].float()


def test_numbers_that_are_not_finite_reach_those_rows_alone_that_use_them() -> None:
    mask = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 1]], dtype=torch.bool)
    x = bordered(torch.tensor([[torch.nan, 1.0], [torch.inf, 2.0], [3.0, -torch.inf]]))
    structure = slices(*forward_coo(mask), 8)
    (packed,) = refresh(torch.ones(5), [structure.source], torch.float32)
    y = spmm(structure, packed, x, linear_lines(x), torch.float32, relu=True)
    inf, nan = torch.inf, torch.nan
    expected = torch.tensor([[nan, 1], [inf, 2], [3, 0], [0, 0], [inf, 0]])
    assert torch.equal(y.nan_to_num(nan=-1.0), expected.nan_to_num(nan=-1.0))


@pytest.mark.parametrize("cap", [None, 4])
def test_results_do_not_depend_on_how_the_work_is_cut(cap: int | None) -> None:
    layer = LinearLayer(24, 30, 40, 0.3, height=16, cap=cap)
    structure = layer.forward_slices
    first = product(structure, layer, layer.x)
    for config in (SpmmConfig(8, 16, 2), SpmmConfig(16, 32, programs=2)):
        assert same_bits(product(structure, layer, layer.x, config), first)


def test_more_pieces_and_tokens_than_the_second_axis_of_a_grid_has(monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[tuple[int, ...]] = []

    class Recorded:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **sizes: grids.append(grid)

    monkeypatch.setattr(triton_spmm, "add_pieces_kernel", Recorded())
    structure = slices(*forward_coo(torch.ones(2, 2, dtype=torch.bool)), 4, cap=1)
    many = dataclasses.replace(structure, split_rows=structure.split_rows[:1].expand(70_000))
    for split, tokens in ((many, 1), (structure, 70_000 * 1024)):
        triton_spmm._add_pieces(split, torch.empty(0), None, False, torch.empty(1).expand(1, tokens))
    # CUDA C++ Programming Guide, table of compute capabilities: the largest y of a grid of thread blocks.
    assert [all(size < 2**16 for size in grid[1:]) for grid in grids] == [True, True]


def test_no_tokens_and_no_rows() -> None:
    empty = LinearLayer(5, 6, 0, 0.5)
    assert product(empty.forward_slices, empty, empty.x).shape == (5, 0)
    nothing = LinearLayer(0, 6, 4, 0.5)
    assert product(nothing.forward_slices, nothing, nothing.x).shape == (0, 4)


def test_what_does_not_fit_is_refused() -> None:
    layer = LinearLayer(5, 6, 7, 0.5)
    structure = layer.forward_slices
    (packed,) = refresh(layer.values, [structure.source], torch.float32)
    lines = linear_lines(layer.x)
    with pytest.raises(ValueError, match="feature-major"):
        linear_lines(layer.x.t())
    with pytest.raises(ValueError, match="packed values"):
        spmm(structure, packed[:-1], layer.x, lines, torch.float32)
    with pytest.raises(ValueError, match="bias of shape"):
        spmm(structure, packed, layer.x, lines, torch.float32, layer.bias[:-1])
    with pytest.raises(ValueError, match="lines of 6 columns, got 5"):
        spmm(structure, packed, layer.x[:5], linear_lines(layer.x[:5]), torch.float32)
    with pytest.raises(ValueError, match="to hold 42 elements"):
        spmm(structure, packed, layer.x[:5].clone(), lines, torch.float32)
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        spmm(structure, packed, layer.x.double(), lines, torch.float32)
    with pytest.raises(ValueError, match="got meta"):
        spmm(structure, packed, layer.x.to("meta"), lines, torch.float32)
    with pytest.raises(ValueError, match="split the batch"):
        spmm(structure, packed, layer.x, dataclasses.replace(lines, run=2**31), torch.float32)
