from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import BACKENDS, twins
from torch import nn

import sparseflow as sf
from sparseflow.hardware.dense_gradient import DenseGradient
from sparseflow.testing import assert_close

# torch warns once a process that an even kernel with padding="same" may copy its input.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

MODES = ("zeros", "reflect", "replicate", "circular")
SHAPES: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    {"kernel_size": 3, "padding": 2, "dilation": (2, 1)},
    {"kernel_size": 3, "padding": 1, "groups": 2},
    {"kernel_size": 1, "bias": False},
    {"kernel_size": 2, "padding": "same"},
    {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
]


def sparse_conv2d(backend: str, **arguments: Any) -> tuple[nn.Conv2d, sf.SparseConv2d]:
    dense, sparse, _ = twins(nn.Conv2d(4, 6, **arguments), backend)
    assert isinstance(dense, nn.Conv2d) and isinstance(sparse, sf.SparseConv2d)
    return dense, sparse


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_masked_dense_layer(backend: str, mode: str, shape: dict[str, Any]) -> None:
    dense, sparse = sparse_conv2d(backend, padding_mode=mode, **shape)
    x = torch.randn(2, 4, 8, 7, requires_grad=True)
    x_sparse = x.detach().clone().requires_grad_()
    y, y_sparse = dense(x), sparse(x_sparse)
    assert_close(y_sparse, y, "output")
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (y_sparse * weights).sum().backward()
    assert_close(x_sparse.grad, x.grad, "dx")
    assert_close(sparse.unpack(sparse.values.grad), dense.weight.grad * sparse.mask, "dweight")
    if dense.bias is not None:
        assert_close(sparse.bias.grad, dense.bias.grad, "dbias")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_densify_gives_the_same_convolution_back(mode: str, shape: dict[str, Any]) -> None:
    dense, sparse = sparse_conv2d("dense", padding_mode=mode, **shape)
    back = sf.densify(sparse)
    assert type(back) is nn.Conv2d
    assert (back.stride, back.dilation, back.groups) == (dense.stride, dense.dilation, dense.groups)
    assert list(back._reversed_padding_repeated_twice) == list(dense._reversed_padding_repeated_twice)
    assert back.padding_mode == mode
    x = torch.randn(2, 4, 8, 7)
    assert torch.equal(back(x), dense(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_unbatched_input(backend: str, mode: str) -> None:
    dense, sparse = sparse_conv2d(backend, kernel_size=3, padding=1, padding_mode=mode)
    x = torch.randn(4, 8, 7)
    assert_close(sparse(x), dense(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_as_for_conv2d(backend: str) -> None:
    dense, sparse = sparse_conv2d(backend, kernel_size=3)
    x = torch.randn(2, 4, 8, 7)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = sparse(x), dense(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    assert_close(y, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_last_and_batch_last_inputs(backend: str) -> None:
    dense, sparse = sparse_conv2d(backend, kernel_size=3)
    x = torch.randn(2, 4, 8, 7)
    assert_close(sparse(x.to(memory_format=torch.channels_last)), dense(x))
    assert_close(sparse(x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)), dense(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_gradient_is_that_of_dense_autograd(backend: str, shape: dict[str, Any]) -> None:
    dense, sparse = sparse_conv2d(backend, **shape)
    sparse.dense_gradient = DenseGradient(sparse)
    for x in torch.randn(2, 3, 4, 8, 7):
        dense(x).square().sum().backward()
        sparse(x).square().sum().backward()
    assert sparse.dense_gradient.total is not None
    assert_close(sparse.dense_gradient.total, dense.weight.grad)


@pytest.mark.parametrize("bad", [(2, 3, 8, 7), (8, 7), (1, 2, 4, 8, 7)])
def test_wrong_channels_are_an_error(bad: tuple[int, ...]) -> None:
    _, sparse = sparse_conv2d("dense", kernel_size=3)
    with pytest.raises(ValueError, match=r"SparseConv2d: expected \(4 channels, H, W\), got"):
        sparse(torch.randn(bad))


def test_repr_tells_the_geometry() -> None:
    _, sparse = sparse_conv2d("dense", kernel_size=3, stride=2)
    assert "4, 6, (3, 3)" in repr(sparse) and "s2,2" in repr(sparse) and "backend='dense'" in repr(sparse)
