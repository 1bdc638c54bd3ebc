from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import BACKENDS, mlp, random_masks, twins
from torch import nn

import sparseflow as sf
from sparseflow.hardware.dense_gradient import DenseGradient
from sparseflow.hardware.layers import SparseLayer
from sparseflow.testing import assert_close

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def sparse_linear(
    backend: str, bias: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[nn.Linear, sf.SparseLinear]:
    dense, sparse, _ = twins(nn.Linear(12, 7, bias=bias, dtype=dtype), backend)
    assert isinstance(dense, nn.Linear) and isinstance(sparse, sf.SparseLinear)
    return dense, sparse


@settings(max_examples=15, deadline=None)
@given(
    rows=st.sampled_from([(), (1,), (5,), (2, 3), (2, 1, 4), (0,)]),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    density=st.floats(0, 1),
    bias=st.booleans(),
)
def test_equals_the_masked_dense_layer(
    backend: str, rows: tuple[int, ...], sizes: tuple[int, int], density: float, bias: bool
) -> None:
    dense, sparse, masks = twins(nn.Linear(*sizes, bias=bias, dtype=torch.float64), backend, density)
    x = torch.randn(*rows, sizes[0], dtype=torch.float64, requires_grad=True)
    x_sparse = x.detach().clone().requires_grad_()
    y, y_sparse = dense(x), sparse(x_sparse)
    assert_close(y_sparse, y, "output")
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (y_sparse * weights).sum().backward()
    assert x.grad is not None and x_sparse.grad is not None
    assert_close(x_sparse.grad, x.grad, "dx")
    assert isinstance(sparse, SparseLayer)
    assert sparse.values.grad is not None
    assert_close(sparse.unpack(sparse.values.grad), dense.weight.grad * masks["weight"], "dweight")
    if bias:
        assert_close(sparse.bias.grad, dense.bias.grad, "dbias")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_parameter_dtypes(backend: str, dtype: torch.dtype) -> None:
    dense, sparse = sparse_linear(backend, dtype=dtype)
    x = torch.randn(5, 12, dtype=dtype)
    y = sparse(x)
    y.sum().backward()
    assert y.dtype == sparse.values.dtype == sparse.values.grad.dtype == dtype
    assert_close(y, dense(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_as_for_linear(backend: str, dtype: torch.dtype) -> None:
    dense, sparse = sparse_linear(backend, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    x = torch.randn(2, 5, 12, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = sparse(x), dense(x)
    assert y.dtype == expected.dtype
    assert_close(y, expected)
    y.sum().backward()
    expected.sum().backward()
    assert sparse.values.grad.dtype == dense.weight.grad.dtype
    assert_close(sparse.unpack(sparse.values.grad).to(y), dense.weight.grad * sparse.mask)


def test_mixed_dtypes_without_autocast_are_an_error(backend: str) -> None:
    _, sparse = sparse_linear(backend)
    with pytest.raises(ValueError, match=r"SparseLinear: expected an input of torch.float32, got torch.float64"):
        sparse(torch.randn(5, 12, dtype=torch.float64))


def test_wrong_width_is_an_error(backend: str) -> None:
    _, sparse = sparse_linear(backend)
    with pytest.raises(ValueError, match=r"expected inputs of width 12, got \(5, 7\)"):
        sparse(torch.randn(5, 7))


def test_output_of_any_rank_is_contiguous(backend: str) -> None:
    _, sparse = sparse_linear(backend)
    for x in (torch.randn(12), torch.randn(5, 12), torch.randn(12, 5).t(), torch.randn(2, 3, 12)):
        assert sparse(x).is_contiguous()


def test_input_without_gradient_computes_no_dx(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, sparse = sparse_linear(backend)
    wanted: list[bool] = []
    backward = type(sparse.op).backward

    def spy(self: object, dy: object, x: object, values: object, need_dx: bool) -> object:
        wanted.append(need_dx)
        return backward(self, dy, x, values, need_dx)

    monkeypatch.setattr(type(sparse.op), "backward", spy)
    sparse(torch.randn(5, 12)).sum().backward()
    sparse(torch.randn(5, 12, requires_grad=True)).sum().backward()
    assert wanted == [False, True]


def test_a_layer_may_run_twice_before_either_backward(backend: str) -> None:
    dense, sparse = sparse_linear(backend)
    first, second = torch.randn(5, 12), torch.randn(3, 12)
    for layer in (dense, sparse):
        (layer(first).sum() * layer(second).square().sum()).backward()
    assert_close(sparse.unpack(sparse.values.grad), dense.weight.grad * sparse.mask)


def test_a_mask_may_change_between_forward_and_backward(backend: str) -> None:
    dense, sparse = sparse_linear(backend)
    x = torch.randn(5, 12, requires_grad=True)
    expected = torch.autograd.grad(dense(x).sum(), x)[0]
    y = sparse(x)
    flipped = sparse.mask.flip(0)
    other = copy.deepcopy(sparse)
    sf.remask(other, {"weight": flipped})
    sparse._install(other.op)
    assert_close(torch.autograd.grad(y.sum(), x)[0], expected)


def test_gradients_accumulate(backend: str) -> None:
    dense, sparse = sparse_linear(backend)
    for x in torch.randn(3, 5, 12):
        dense(x).square().sum().backward()
        sparse(x).square().sum().backward()
    assert_close(sparse.unpack(sparse.values.grad), dense.weight.grad * sparse.mask)
    assert_close(sparse.bias.grad, dense.bias.grad)


def test_weight_is_dense_differentiable_and_read_only(backend: str) -> None:
    dense, sparse = sparse_linear(backend)
    assert torch.equal(sparse.weight, dense.weight)
    factors = torch.randn(7, 12)
    (sparse.weight * factors).sum().backward()
    assert torch.equal(sparse.unpack(sparse.values.grad), factors * sparse.mask)
    with pytest.raises(AttributeError):
        sparse.weight = torch.zeros(7, 12)
    with pytest.raises(KeyError, match="weight"):
        sparse.weight = nn.Parameter(torch.zeros(7, 12))
    with torch.no_grad():
        assert not sparse.weight.requires_grad


def test_the_only_weight_parameter_is_values(backend: str) -> None:
    _, sparse = sparse_linear(backend)
    assert {name for name, _ in sparse.named_parameters()} == {"values", "bias"}
    assert not list(sparse.buffers())
    assert sparse.values.numel() == (84 if backend == "dense" else sparse.op.nnz)
    assert "nnz=" in repr(sparse) and repr(backend) in repr(sparse)


def test_dense_gradient_is_that_of_dense_autograd(backend: str) -> None:
    dense, sparse = sparse_linear(backend)
    sparse.dense_gradient = DenseGradient(sparse)
    for x in torch.randn(2, 4, 3, 12):
        dense(x).square().sum().backward()
        sparse(x).square().sum().backward()
    assert sparse.dense_gradient.total is not None
    assert_close(sparse.dense_gradient.total, dense.weight.grad)
    sparse.dense_gradient = None
    sparse(x).sum().backward()


def test_dense_gradient_under_autocast_is_summed_in_the_parameters_dtype(backend: str) -> None:
    dense, sparse = sparse_linear(backend)
    sparse.dense_gradient = DenseGradient(sparse)
    for x in torch.randn(20, 5, 12):
        with torch.autocast("cpu", torch.bfloat16):
            y, expected = sparse(x), dense(x)
        y.float().sum().backward()
        expected.float().sum().backward()
    total = sparse.dense_gradient.total
    assert total is not None and total.dtype == torch.float32
    assert_close(total, dense.weight.grad)


def test_frozen_weights_stay_frozen(backend: str) -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    masks = random_masks(model)
    sparse = sf.sparsify(model, masks, backend=backend)
    assert not sparse[0].values.requires_grad and sparse[2].values.requires_grad
    assert not sparse[2].bias.requires_grad
    sparse(torch.randn(4, 12)).sum().backward()
    assert sparse[0].values.grad is None and sparse[2].bias.grad is None
    sf.remask(sparse, random_masks(sparse, 0.2, seed=1))
    assert not sparse[0].values.requires_grad
    dense = sf.densify(sparse)
    assert not dense[0].weight.requires_grad and dense[2].weight.requires_grad


def test_an_empty_mask_leaves_the_bias(backend: str) -> None:
    sparse = sf.sparsify(nn.Linear(4, 3), {"weight": torch.zeros(3, 4, dtype=torch.bool)}, backend=backend)
    y = sparse(torch.randn(2, 4))
    y.sum().backward()
    assert torch.equal(y, sparse.bias.expand(2, 3))
    assert sparse.op.nnz == 0 and not sparse.mask.any()
    assert isinstance(sf.densify(sparse), nn.Linear)
