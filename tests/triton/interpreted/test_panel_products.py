"""The products of panels under the interpreter, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from panel_case import PanelCase, coo_of, packed_by_hand

from sparseflow.testing.closeness import assert_close, same_bits
from sparseflow.testing.placement import bordered, memory_of
from sparseflow_kernels import reference, triton_panel_gradient
from sparseflow_kernels.triton_conv import (
    conv_axes,
    conv_gradient,
    conv_input,
    conv_lines,
    dgrad_lines,
    interleaved,
)
from sparseflow_kernels.triton_coo import conv_dgrad_coo, forward_coo, linear_dgrad_coo
from sparseflow_kernels.triton_lines import linear_lines
from sparseflow_kernels.triton_panel import PanelConfig, panel_spmm
from sparseflow_kernels.triton_panel_gradient import PanelGradientConfig, panel_sddmm
from sparseflow_kernels.triton_panel_pack import fill_panels
from sparseflow_kernels.triton_panels import panels

# Rows, columns, tokens, density, height.
SHAPES = [
    ((1, 1), 1, 1.0, 64),
    ((33, 63), 5, 0.0, 64),
    ((33, 63), 5, 0.5, 128),
    ((70, 130), 200, 1e-9, 64),
    ((200, 300), 257, 0.03, 64),
    ((200, 300), 128, 0.03, 128),
    ((65, 1000), 33, 1.0, 64),
]
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def case(shape, request):
    return PanelCase(*shape, request.param)


@pytest.mark.parametrize("config", [None, PanelConfig(64, 32, 4, 2)], ids=["whole steps", "half steps"])
def test_forward(case, config):
    y = panel_spmm(case.panels, case.packed, case.x, linear_lines(case.x), torch.float32, case.bias, True, config)
    expected = reference.linear(case.x.t(), case.weight, case.mask, case.bias).t().relu()
    assert_close(y, expected)


@pytest.mark.parametrize("config", [None, PanelGradientConfig(128, 32, 4, 2)], ids=["one block", "blocks"])
def test_weight_gradient(case, config):
    got = panel_sddmm(case.panels, case.dy, case.x, linear_lines(case.x), config=config)
    _, expected = reference.linear_backward(case.dy.t(), case.x.t(), case.weight, case.mask)
    assert_close(got, expected[case.mask])


def test_input_gradient(case):
    transposed = panels(*linear_dgrad_coo(case.mask), case.panels.height)
    packed = packed_by_hand(transposed, case.values)
    dx = panel_spmm(transposed, packed, case.dy, linear_lines(case.dy), torch.float32)
    expected, _ = reference.linear_backward(case.dy.t(), case.x.t(), case.weight, case.mask)
    assert_close(dx, expected.t())


def test_parts_of_the_tokens_are_added(monkeypatch):
    case = PanelCase((70, 130), 300, 0.1, 64, torch.float16)
    config = PanelGradientConfig(64, 64, 4, 1)
    lines = linear_lines(case.x)
    whole = panel_sddmm(case.panels, case.dy, case.x, lines, config=config)
    # Five steps of tokens, by twos; what is asked for is no multiple of what there is.
    monkeypatch.setattr(triton_panel_gradient, "_PROGRAMS", 17)
    parts = panel_sddmm(case.panels, case.dy, case.x, lines, config=config)
    assert not same_bits(parts, whole)
    assert_close(parts, (case.dy.double() @ case.x.double().t())[case.mask])
    assert same_bits(parts, panel_sddmm(case.panels, case.dy, case.x, lines, config=config))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fill(dtype, values_dtype):
    case = PanelCase((70, 130), 1, 0.2, 64, dtype)
    values = bordered(case.random(case.panels.nnz).to(values_dtype))
    assert_close(fill_panels(case.panels, values, dtype), packed_by_hand(case.panels, values.float()))


def test_results_have_the_dtype_asked_for():
    case = PanelCase((70, 130), 40, 0.1, 64, torch.float16)
    lines = linear_lines(case.x)
    y = panel_spmm(case.panels, case.packed, case.x, lines, torch.float16)
    assert_close(y, reference.linear(case.x.t(), case.weight, case.mask).t())
    assert panel_sddmm(case.panels, case.dy, case.x, lines, torch.float16).dtype == torch.float16


def test_rows_with_gaps_between_them():
    case = PanelCase((70, 130), 40, 0.1, 64, torch.float16)
    wide_x, wide_dy = (tensor.new_full((tensor.shape[0], 99), math.nan) for tensor in (case.x, case.dy))
    x, dy = (wide[:, 3:43].copy_(tensor) for wide, tensor in ((wide_x, case.x), (wide_dy, case.dy)))
    lines = linear_lines(x)
    assert_close(panel_spmm(case.panels, case.packed, x, lines, torch.float32), case.weight.double() @ case.x.double())
    assert_close(panel_sddmm(case.panels, dy, x, lines), (case.dy.double() @ case.x.double().t())[case.mask])


def test_columns_that_no_row_keeps_are_not_read():
    case = PanelCase((70, 130), 40, 0.05, 64, torch.float16)
    case.mask[:, :3] = case.mask[:, 120:] = False
    structure = panels(*coo_of(case.mask), 64)
    case.x[:3] = case.x[120:] = math.nan
    packed = packed_by_hand(structure, case.values)
    y = panel_spmm(structure, packed, case.x, linear_lines(case.x), torch.float32)
    assert_close(y, (case.weight * case.mask)[:, 3:120].double() @ case.x[3:120].double())


def test_relu_keeps_nan():
    case = PanelCase((3, 2), 4, 1.0, 64, torch.float16)
    case.x[0, 1] = math.nan
    y = panel_spmm(case.panels, case.packed, case.x, linear_lines(case.x), torch.float16, None, True)
    assert torch.equal(y.isnan().any(0), torch.tensor([False, True, False, False]))


def test_nothing_else_is_written():
    case = PanelCase((33, 63), 21, 0.2, 64, torch.float16)
    before = [memory_of(tensor).clone() for tensor in (case.x, case.dy)]
    panel_spmm(case.panels, case.packed, case.x, linear_lines(case.x), torch.float16)
    panel_sddmm(case.panels, case.dy, case.x, linear_lines(case.x))
    assert all(torch.equal(memory_of(tensor), old) for tensor, old in zip((case.x, case.dy), before, strict=True))


# Stride, padding, dilation, groups, images.
CONVOLUTIONS = [
    ((1, 1), (1, 1), (1, 1), 1, 8),
    ((2, 2), (1, 1), (1, 1), 1, 3),
    ((2, 1), (0, 2), (1, 2), 2, 5),
]


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups", "images"), CONVOLUTIONS)
def test_convolution(stride, padding, dilation, groups, images):
    generator = torch.Generator().manual_seed(images)
    size, kernel, inputs, outputs = (9, 11), (3, 2), 6, 10

    def random(*shape):
        return (2 * torch.rand(shape, generator=generator) - 0.5).half()

    mask = torch.rand(outputs, inputs // groups, *kernel, generator=generator) < 0.3
    x, weight = random(images, inputs, *size), random(*mask.shape)
    axes = conv_axes(size, kernel, stride, padding, dilation)
    forward = panels(*forward_coo(mask, groups), 64)
    lines = conv_lines(axes, inputs, images, x.device)
    read = conv_input(x, axes)
    values = weight[mask]
    y = panel_spmm(forward, packed_by_hand(forward, values), read, lines, torch.float32)
    shape = (outputs, axes[0].out, axes[1].out, images)
    settings = (stride, padding, dilation, groups)
    assert_close(y.view(shape).permute(3, 0, 1, 2), reference.conv2d(x, weight, mask, None, *settings))

    dy = random(images, outputs, *shape[1:3])
    expected_dx, expected_dweight = reference.conv2d_backward(dy, x, weight, mask, *settings)
    config = PanelGradientConfig(64, 32, 4, 1)
    dy_lines = dy.permute(1, 2, 3, 0).reshape(outputs, -1)
    assert_close(panel_sddmm(forward, dy_lines, read, lines, config=config), expected_dweight[mask])

    backward = panels(*conv_dgrad_coo(mask, axes, groups), 64)
    packed = packed_by_hand(backward, values)
    lines = dgrad_lines(axes, outputs, images, x.device)
    phases = panel_spmm(backward, packed, conv_gradient(dy, axes), lines, torch.float32)
    assert_close(interleaved(phases, axes, images), expected_dx)


def test_bad_input():
    case = PanelCase((33, 63), 8, 0.2, 64, torch.float16)
    lines = linear_lines(case.x)
    with pytest.raises(ValueError, match=r"packed values of torch\.bfloat16"):
        panel_spmm(case.panels, case.packed, case.x.bfloat16(), lines, torch.float32)
    with pytest.raises(ValueError, match="pack them anew"):
        panel_spmm(case.panels, case.packed[:-1], case.x, lines, torch.float16)
    with pytest.raises(ValueError, match="bias of shape"):
        panel_spmm(case.panels, case.packed, case.x, lines, torch.float16, case.bias[1:])
    with pytest.raises(ValueError, match=r"bfloat16 or float16, got torch\.float32"):
        panel_sddmm(case.panels, case.dy.float(), case.x.float(), lines)
    with pytest.raises(ValueError, match="expected dy of shape"):
        panel_sddmm(case.panels, case.dy[1:], case.x, lines)
    with pytest.raises(ValueError, match="expected x to hold"):
        panel_sddmm(case.panels, case.dy, case.x[:-1].clone(), lines)
    with pytest.raises(ValueError, match="contiguous values"):
        fill_panels(case.panels, case.weight.flatten(), torch.float16)
