"""The weight gradient of linear layers against float64, for every way of cutting the work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_layer import LinearLayer
from torch import Tensor

from sparseflow.testing import assert_close
from sparseflow.testing.closeness import same_bits
from sparseflow_kernels import reference, triton_sddmm
from sparseflow_kernels.triton_lines import linear_lines
from sparseflow_kernels.triton_sddmm import SddmmConfig, sddmm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def gradient(layer: LinearLayer, config: SddmmConfig | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    nnz = int(layer.mask.sum())
    return sddmm(layer.forward_slices, layer.dy, layer.x, linear_lines(layer.x), nnz, dtype, config)


def expected(layer: LinearLayer) -> Tensor:
    _, dweight = reference.linear_backward(layer.dy.t(), layer.x.t(), layer.weight, layer.mask)
    return dweight[layer.mask]


@settings(deadline=None, max_examples=30)
@given(
    layer=st.builds(
        LinearLayer,
        outputs=st.sampled_from([1, 7, 33]),
        inputs=st.sampled_from([1, 6, 33]),
        tokens=st.sampled_from([0, 1, 5, 33, 64]),
        density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
        height=st.sampled_from([4, 32]),
        cap=st.sampled_from([None, 3, 8]),
        gaps=st.booleans(),
        dtype=st.sampled_from(DTYPES),
        seed=st.integers(0, 10**6),
    ),
    config=st.builds(
        SddmmConfig,
        lanes=st.sampled_from([8, 64]),
        steps=st.sampled_from([4, 16]),
        tokens=st.sampled_from([16, 64]),
        part=st.sampled_from([32, 1000]),
    ),
)
def test_the_weight_gradient_is_that_of_float64(layer: LinearLayer, config: SddmmConfig) -> None:
    assert_close(gradient(layer, config), expected(layer), "dvalues")


@pytest.mark.parametrize("size", [1, 33, 63, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_sizes_with_the_default_configuration(size: int, dtype: torch.dtype) -> None:
    layer = LinearLayer(size, size, size, min(1.0, 4 / size), height=128, dtype=dtype)
    assert_close(gradient(layer), expected(layer), "dvalues")


@pytest.mark.parametrize("part", [32, 1000])
def test_the_gradient_takes_the_dtype_asked_for(part: int) -> None:
    layer = LinearLayer(9, 10, 64, 0.5, dtype=torch.bfloat16)
    got = gradient(layer, SddmmConfig(8, 8, 16, part), torch.bfloat16)
    assert got.dtype == torch.bfloat16
    assert_close(got, expected(layer), "dvalues")


def test_partial_sums_take_a_bounded_amount_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LinearLayer(9, 10, 64, 0.5)
    sizes: list[int] = []
    launch = triton_sddmm._launch

    def watched(*arguments: Any) -> None:
        sizes.append(arguments[-1].numel())
        launch(*arguments)

    monkeypatch.setattr(triton_sddmm, "_launch", watched)
    nnz = int(layer.mask.sum())
    for most in (3 * nnz, nnz - 1):
        monkeypatch.setattr(triton_sddmm, "_SCRATCH", most)
        assert_close(gradient(layer, SddmmConfig(8, 8, 16, 16)), expected(layer), "dvalues")
    assert sizes == [3 * nnz, nnz]


def test_results_repeat_bit_for_bit() -> None:
    layer = LinearLayer(20, 30, 70, 0.3, cap=4)
    config = SddmmConfig(8, 8, 16, 32)
    assert same_bits(gradient(layer, config), gradient(layer, config))


def test_numbers_that_are_not_finite_reach_those_weights_alone_that_they_meet() -> None:
    layer = LinearLayer(9, 10, 20, 0.5)
    layer.x[0, 3], layer.dy[2, 4] = torch.inf, torch.nan
    rows, columns = layer.mask.nonzero().unbind(1)
    is_met = (columns == 0) | (rows == 2)
    assert torch.equal(gradient(layer).isfinite(), is_met.logical_not())


def test_what_does_not_fit_is_refused() -> None:
    layer = LinearLayer(5, 6, 7, 0.5)
    structure, lines = layer.forward_slices, linear_lines(layer.x)
    with pytest.raises(ValueError, match=r"expected dy of shape \(5, 7\) with contiguous rows, got \(4, 7\)"):
        sddmm(structure, layer.dy[:4], layer.x, lines, 3)
    with pytest.raises(ValueError, match=r"with strides \(1, 5\)"):
        sddmm(structure, layer.dy.t().contiguous().t(), layer.x, lines, 3)
    with pytest.raises(ValueError, match="got meta"):
        sddmm(structure, layer.dy.to("meta"), layer.x, lines, 3)
