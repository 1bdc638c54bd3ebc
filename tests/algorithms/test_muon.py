"""Muon: what Newton and Schulz's iteration makes of singular values, and what becomes of pruned weights."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
import torch
from leavings import left_in
from tiny_task import Net, tiny_trainer
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.hardware.layers import SparseLayer
from sparseflow.hardware.model import sparse_layers
from sparseflow.recipes import load_recipe, make_trainer
from sparseflow.training.erasure import Erasure
from sparseflow.training.muon import orthogonalize
from sparseflow.training.records import Records
from sparseflow.training.trainer import Stopped

MUON = partial(sf.Muon, lr=0.02)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def singular(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.double())


def five_times(x: Tensor) -> Tensor:
    """The iteration on one singular value."""
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return x


def test_the_map_of_singular_values() -> None:
    x = torch.linspace(0.01, 1, 10_000, dtype=torch.float64)
    assert float(five_times(torch.ones((), dtype=torch.float64))) == pytest.approx(0.6964, abs=1e-4)
    assert float(five_times(x * x).max()) == pytest.approx(1.2024, abs=1e-4)
    assert float(five_times(torch.tensor(0.00107))) == pytest.approx(0.5, abs=2e-3)
    assert float(five_times(x).min()) == pytest.approx(0.682, abs=1e-3)
    # A diagonal matrix shows it: its entries are its singular values, over their norm.
    entries = torch.tensor([3.0, 1.0, 0.1, 0.01], dtype=torch.float64)
    found = orthogonalize(entries.diag()).diagonal()
    torch.testing.assert_close(found, five_times(entries / entries.norm()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(300, 784), (784, 300), (40, 160), (100, 7)])
@pytest.mark.parametrize("seed", [0, 1])
def test_singular_values_of_random_matrices(shape: tuple[int, int], seed: int) -> None:
    matrix = drawn(*shape, seed=seed)
    found = orthogonalize(matrix)
    assert singular(found).min() > 0.67 and singular(found).max() < 1.21
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.cosine_similarity(found.flatten(), (u @ vh).flatten(), 0) > 0.97


def test_small_singular_values_of_a_square_stay_small() -> None:
    found = singular(orthogonalize(drawn(256, 256)))
    assert found.min() < 0.3 and found.max() < 1.21


@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
def test_a_masked_gradient_leaks_out_of_its_mask(density: float) -> None:
    mask = torch.rand(300, 784, generator=torch.Generator().manual_seed(1)) < density
    gradient = drawn(300, 784) * mask
    update = orthogonalize(gradient)
    leaked = float((update[~mask] ** 2).sum() / (update**2).sum())
    assert 0.05 < leaked < 0.15
    values = singular(update * mask)
    # No longer orthogonal, and still well spread: no direction is lost, none dominates.
    assert values.min() > 0.2 and values.max() < 1.4
    assert torch.cosine_similarity((update * mask).flatten(), gradient.flatten(), 0) > 0.9


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_the_same_as_torch_but_for_its_bfloat16(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    ours, theirs = nn.Parameter(drawn(*shape)), nn.Parameter(drawn(*shape))
    optimizers = [
        sf.Muon([ours], lr=1.0, weight_decay=0.01),
        torch.optim.Muon([theirs], lr=1.0, weight_decay=0.01),
    ]
    for seed in (1, 2, 3):
        ours.grad, theirs.grad = drawn(*shape, seed=seed), drawn(*shape, seed=seed)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_bfloat16_would_give_the_same_singular_values() -> None:
    matrix = drawn(300, 784)
    exact, short = singular(orthogonalize(matrix)), singular(orthogonalize(matrix.bfloat16()))
    assert (exact - short).abs().max() < 0.015


def test_kernels_are_flattened_and_the_rest_is_adamw() -> None:
    kernel, bias = nn.Parameter(drawn(4, 3, 3, 3)), nn.Parameter(drawn(4))
    twin = nn.Parameter(bias.detach().clone())
    optimizer, adamw = sf.Muon([kernel, bias], lr=0.5, adamw_lr=0.1), torch.optim.AdamW([twin], 0.1, weight_decay=0)
    before = kernel.detach().clone()
    kernel.grad, bias.grad, twin.grad = drawn(4, 3, 3, 3, seed=1), drawn(4, seed=1), drawn(4, seed=1)
    optimizer.step()
    adamw.step()
    assert torch.equal(bias, twin)
    expected = before.flatten(1) - 0.5 * orthogonalize(kernel.grad.flatten(1))
    torch.testing.assert_close(kernel.detach().flatten(1), expected)


def test_groups_of_hidden_matrices_and_others() -> None:
    model = sf.models.gpt(11, context=8, layers=1, heads=2, width=8)
    hidden, matrices, rest = (names(model, group["params"]) for group in sf.muon_groups(model, 0.1))
    assert len(hidden) == 6 and all(name.startswith("blocks.0.") for name in hidden)
    assert matrices == ["tokens.weight", "positions.weight", "head.weight"]
    assert all("norm" in name or name.endswith("bias") for name in rest)
    assert [group["weight_decay"] for group in sf.muon_groups(model, 0.1)] == [0.1, 0.1, 0.0]


def names(model: nn.Module, parameters: Iterable[nn.Parameter]) -> list[str]:
    of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [of[id(parameter)] for parameter in parameters]


def sparse_net(backend: str) -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    return sf.sparsify(model, sf.prune(model, 0.3, floor=1), backend=backend)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_pruned_weights_do_not_move(decay: float) -> None:
    trainer = tiny_trainer(sparse_net("dense"), optimizer=MUON, weight_decay=decay, groups=sf.muon_groups)
    step = trainer.stepper(trainer.model)
    start = {name: layer.weight.detach().clone() for name, layer in sparse_layers(trainer.model).items()}
    for number in range(6):
        step(number)
        for name, layer in sparse_layers(trainer.model).items():
            assert not layer.values[~layer.mask].any()
            assert not torch.equal(layer.weight, start[name])


def test_without_a_mask_after_the_iteration_they_would_move(monkeypatch: pytest.MonkeyPatch) -> None:
    # The trap: the oracle above goes red at the first step.
    monkeypatch.setattr(SparseLayer, "remask_values_", lambda layer: None)
    trainer = tiny_trainer(sparse_net("dense"), optimizer=MUON, groups=sf.muon_groups)
    trainer.stepper(trainer.model)(0)
    layer = sparse_layers(trainer.model)["fc1.weight"]
    assert layer.values[~layer.mask].any()


@pytest.mark.parametrize("backend", ["dense-compact", "cpu"])
def test_flat_values_are_refused(backend: str) -> None:
    trainer = tiny_trainer(sparse_net(backend), optimizer=MUON, groups=sf.muon_groups)
    with pytest.raises(ValueError, match=f"Muon combines elements .* backend {backend!r}.* use backend='dense'"):
        trainer.stepper(trainer.model)(0)


def test_a_search_under_muon_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)

    def search(folder: Path, stop: bool) -> list[str]:
        trainer = tiny_trainer(optimizer=MUON, weight_decay=0.01, groups=sf.muon_groups)
        trainer.should_stop = lambda: stop
        tickets = sf.imp(trainer, rounds=2, rate=0.5, backend="dense", records=Records(folder))
        return [ticket.digest for ticket in tickets]

    whole = search(tmp_path / "whole", stop=False)
    stops = 0
    while True:
        try:
            parts = search(tmp_path / "parts", stop=True)
            break
        except Stopped:
            stops += 1
    assert stops > 5
    assert parts == whole
    assert left_in(tmp_path / "parts") == left_in(tmp_path / "whole")


def test_the_recipe_and_its_backend() -> None:
    recipe = load_recipe("muon", ["data=digits", "model.options={inputs: 64}"])
    trainer = make_trainer(recipe, 1)
    optimizer = trainer.make_optimizer(sf.muon_groups(trainer.model, 0.0))
    assert [(group["orthogonal"], group["lr"], len(group["params"])) for group in optimizer.param_groups] == [
        (True, 0.02, 2),
        (False, 0.0012, 1),
        (False, 0.0012, 3),
    ]
    with pytest.raises(ValueError, match=r"'muon' combines elements .*: expected backend: dense, got auto"):
        load_recipe("muon", ["backend=auto"])


def test_numbers_out_of_range() -> None:
    parameter = nn.Parameter(drawn(2, 2))
    with pytest.raises(ValueError, match=r"Muon: expected momentum in \[0, 1\), got 1.0"):
        sf.Muon([parameter], momentum=1.0)
    with pytest.raises(ValueError, match=r"Muon: expected lr, adamw_lr and weight_decay ≥ 0, got -1.0, 0.001 and 0.0"):
        sf.Muon([parameter], lr=-1.0)


def test_erasure_of_a_literal_weight() -> None:
    start, end = {"w": torch.tensor([[1.0, -1.0], [2.0, -2.0]])}, {"w": torch.tensor([[-1.0, 1.0], [2.0, -2.0]])}
    found = sf.erasure(start, end)["w"]
    assert (found.correlation, found.flips, found.change) == pytest.approx((0.6, 0.5, (8 / 10) ** 0.5))
    masks = {"w": torch.tensor([[False, False], [True, True]])}
    kept = sf.erasure(start, end, masks)["w"]
    assert (kept.correlation, kept.flips, kept.change) == pytest.approx((1.0, 0.0, 0.0))


def test_muon_forgets_its_start_more_than_adam_and_that_more_than_sgd() -> None:
    # The ordering of the three, on a task of seconds: 64-128-128-10 on scikit-learn's digits.
    found = [
        forgotten(optimizer)
        for optimizer in (MUON, partial(torch.optim.Adam, lr=1e-3), partial(torch.optim.SGD, lr=0.05, momentum=0.9))
    ]
    muon, adam, sgd = found
    assert muon.correlation < adam.correlation < sgd.correlation
    assert muon.flips > adam.flips > sgd.flips
    assert muon.change > adam.change > sgd.change


def forgotten(optimizer: object) -> Erasure:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    trainer = tiny_trainer(net, data=sf.data.load("digits", {}), optimizer=optimizer, steps=100, batch_size=128)
    trainer.groups = sf.muon_groups if optimizer is MUON else None
    start = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    step = trainer.stepper(trainer.model)
    for number in range(100):
        step(number)
    return sf.erasure(start, dict(trainer.model.named_parameters()))["2.weight"]


def test_erasure_needs_the_start() -> None:
    with pytest.raises(ValueError, match=r"erasure: w: expected a start of shape \(2, 2\), got none"):
        sf.erasure({}, {"w": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="erasure: w: expected weights that differ from each other, got 4 equal ones"):
        sf.erasure({"w": torch.ones(2, 2)}, {"w": drawn(2, 2)})
