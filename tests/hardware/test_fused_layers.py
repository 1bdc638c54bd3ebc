"""Layers whose backend fuses: ReLU and bias gradient inside, feature-major outputs, and what must not notice."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fused_backend import is_feature_major
from networks import masked_twin, random_masks
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.hardware.dense_gradient import DenseGradient
from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.relu import PassedReLU
from sparseflow.testing import assert_close

Calls = list[tuple[bool, bool, bool]]

pytestmark = pytest.mark.usefixtures("fused")


def mlp(inplace: bool = False) -> nn.Sequential:
    relus = [nn.ReLU(inplace) for _ in range(2)]
    return nn.Sequential(nn.Linear(6, 8), relus[0], nn.Linear(8, 7), relus[1], nn.Linear(7, 5))


class Transformer(nn.Module):
    """The MLP half of a block."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.up, self.down, self.act = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6), act

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


def images() -> nn.Sequential:
    body = [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)).view(x.shape[0], -1)).view(-1)


def sparsified(model: nn.Module, x: Tensor, backend: str = "fused") -> tuple[nn.Module, nn.Module]:
    """(masked dense model, sparse model) with equal weights; the latter knows its chains from a sample run."""
    masks = random_masks(model)
    return masked_twin(model, masks), sf.sparsify(copy.deepcopy(model), masks, backend=backend, sample=x)


def check_equal(dense: nn.Module, sparse: nn.Module, x: Tensor) -> Tensor:
    """Outputs, input and parameter gradients; returns the sparse model's output."""
    results = []
    for model in (dense, sparse):
        model.zero_grad()
        x = x.detach().requires_grad_()
        y = model(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        results.append((y, x.grad))
    (expected, expected_dx), (y, dx) = results
    assert_close(y, expected, "output")
    assert_close(dx, expected_dx, "dx")
    for (name, parameter), (_, reference) in zip(sparse.named_parameters(), dense.named_parameters()):
        path, _, key = name.rpartition(".")
        layer = sparse.get_submodule(path)
        if key == "values":
            assert isinstance(layer, SparseLayer)
            assert_close(layer.unpack(parameter.grad), reference.grad * layer.mask, name)
        else:
            assert_close(parameter.grad, reference.grad, name)
    return y


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Calls]] = {
    "mlp": (mlp, (4, 6), [(True, False, True), (True, True, True), (False, True, False)]),
    "mlp, rows in two dimensions": (mlp, (2, 3, 6), [(True, False, True), (True, True, True), (False, True, False)]),
    "mlp in place": (lambda: mlp(True), (4, 6), [(True, False, True), (True, True, True), (False, True, False)]),
    "gelu": (lambda: Transformer(nn.GELU()), (2, 3, 6), [(False, False, True), (False, True, False)]),
    "relu as a function": (lambda: Transformer(F.relu), (2, 3, 6), [(False, False, True), (False, True, False)]),
    "flattened": (Flattened, (2, 3, 6), [(False, False, False), (False, False, False)]),
    "images": (images, (3, 2, 8, 8), [(True, False, False), (True, False, False), (False, False, False)]),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_compute_the_same_with_chains(name: str, fused: Calls) -> None:
    make, shape, expected = MODELS[name]
    x = torch.randn(shape, dtype=torch.float64)
    dense, sparse = sparsified(make().double(), x)
    assert not fused
    y = check_equal(dense, sparse, x)
    assert fused == expected
    assert y.is_contiguous()


def test_a_three_dimensional_output_is_a_view_with_the_batch_contiguous() -> None:
    layer = sf.sparsify(nn.Linear(6, 8), {"weight": torch.rand(8, 6) < 0.5}, backend="fused")
    layer.feature_major = True
    y = layer(torch.randn(2, 3, 6))
    assert y.shape == (2, 3, 8) and y.stride() == (3, 1, 6)
    # The next layer takes it as a matrix without a copy.
    assert y.reshape(-1, 8).data_ptr() == y.data_ptr()


@pytest.mark.parametrize("backend", ["dense", "dense-compact"])
def test_other_backends_rectify_too_and_stay_contiguous(backend: str) -> None:
    layer = sf.sparsify(nn.Linear(6, 8), {"weight": torch.rand(8, 6) < 0.5}, backend=backend)
    plain = copy.deepcopy(layer)
    layer.relu = layer.feature_major = True
    x = torch.randn(4, 6)
    y = layer(x)
    assert y.is_contiguous() and torch.equal(y, plain(x).relu())
    y.sum().backward()
    plain(x).relu().sum().backward()
    assert torch.equal(layer.values.grad, plain.values.grad)


def test_a_dense_gradient_is_that_behind_the_relu() -> None:
    dense, sparse = sparsified(mlp(), torch.randn(4, 6))
    first = sparse[0]
    first.dense_gradient = DenseGradient(first)
    check_equal(dense, sparse, torch.randn(9, 6))
    assert first.relu
    assert_close(first.dense_gradient.total, dense[0].weight.grad)


def test_writing_into_a_rectified_output_is_noticed_by_autograd() -> None:
    _, sparse = sparsified(mlp(), torch.randn(4, 6))
    y = sparse[0](torch.randn(4, 6))
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_second_order_is_refused() -> None:
    _, sparse = sparsified(mlp(), torch.randn(4, 6))
    y = sparse(torch.randn(4, 6)).square().sum()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(y, sparse[0].values, create_graph=True)


def test_densify_gives_the_classes_back_and_sparsify_takes_them_again() -> None:
    x = torch.randn(4, 6)
    dense, sparse = sparsified(mlp(), x)
    assert [type(module) for module in sparse] == [sf.SparseLinear, PassedReLU] * 2 + [sf.SparseLinear]
    back = sf.densify(sparse)
    assert [type(module) for module in back] == [nn.Linear, nn.ReLU] * 2 + [nn.Linear]
    assert torch.equal(back(x), dense(x))
    again = sf.sparsify(back, random_masks(back, 0.3), backend="fused", sample=x)
    assert type(again[1]) is PassedReLU


def test_copies_pickles_and_state_dicts(fused: Calls) -> None:
    x = torch.randn(4, 6)
    dense, sparse = sparsified(mlp(), x)
    for twin in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        fused.clear()
        check_equal(dense, twin, x)
        assert fused[0] == (True, False, True)
    plain = sf.sparsify(mlp(), random_masks(mlp()), backend="dense")
    plain.load_state_dict(sparse.state_dict())
    assert_close(plain(x), dense(x))
    assert sparse.eval()(x).equal(sparse.train()(x))


def test_remask_keeps_the_flags(fused: Calls) -> None:
    x = torch.randn(4, 6)
    _, sparse = sparsified(mlp(), x)
    masks = random_masks(sparse, 0.5, seed=3)
    sf.remask(sparse, masks)
    sparse(x)
    assert fused == [(True, False, True), (True, True, True), (False, True, False)]


class Shared(nn.Module):
    """One ReLU behind three outputs, of which the layer `a` alone is followed by it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.a(x))
        h = self.relu(self.b(h) - 0.5)
        return self.relu(self.c(h) - h) - self.relu(h - 0.1)


def test_a_shared_relu_computes_where_nobody_has() -> None:
    x = torch.randn(4, 6)
    dense, sparse = sparsified(Shared(), x)
    assert [sparse.a.relu, sparse.b.relu, sparse.c.relu] == [True, False, False]
    check_equal(dense, sparse, x)


def test_a_rectified_tensor_is_passed_once_only() -> None:
    _, sparse = sparsified(mlp(), torch.randn(4, 6))
    with torch.no_grad():
        h = sparse[0](torch.randn(4, 6))
        assert sparse[1](h) is h
        h.sub_(1)
        assert torch.equal(sparse[1](h), h.relu()) and not torch.equal(h.relu(), h)


def test_hooks_on_a_relu_and_dropout_before_it_change_nothing() -> None:
    x = torch.randn(4, 6)
    dense, sparse = sparsified(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU()), x)
    assert sparse[0].relu
    outputs: list[Tensor] = []
    sparse[2].register_forward_hook(lambda module, inputs, y: outputs.append(y))
    sparse[2].register_full_backward_hook(lambda *_: None)
    for training in (True, False):
        dense.train(training)
        sparse.train(training)
        torch.manual_seed(5)
        expected = dense(x)
        torch.manual_seed(5)
        assert_close(sparse(x), expected)
        assert (outputs[-1] >= 0).all() and (outputs[-1] > 0).any()


def test_hooks_on_a_layer_see_its_own_output() -> None:
    x = torch.randn(4, 6)
    model = mlp()
    masks = random_masks(model)
    plan = sf.plan(model, masks, x, backend="fused")
    assert plan.row("0.weight").relu and plan.row("0.weight").feature_major
    seen: list[Tensor] = []
    # After the plan: sparsify looks again.
    model[0].register_forward_hook(lambda module, inputs, y: seen.append(y))
    sparse = sf.sparsify(model, masks, plan=plan)
    sparse(x)
    assert (seen[0] < 0).any() and seen[0].is_contiguous() and not is_feature_major(seen[0])
    assert type(sparse[1]) is nn.ReLU and type(sparse[3]) is PassedReLU
    assert not sf.plan(model, {}, x, backend="fused").rows


def test_a_layer_says_what_it_fuses() -> None:
    _, sparse = sparsified(mlp(), torch.randn(4, 6))
    assert "relu=True, feature_major=True" in repr(sparse[0])
    assert "relu" not in repr(sparse[4]) and "feature_major" not in repr(sparse[4])
