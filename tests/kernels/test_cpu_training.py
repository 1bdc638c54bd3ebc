"""Training on the backend `cpu`: the same to the bit each time, and the same as on `dense` to tolerance."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.testing import relative_error


class Small(nn.Module):
    """A convolution with a stride, and a chain of linear layers behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.first, self.second = nn.Linear(16 * 36, 200), nn.Linear(200, 100)
        self.act, self.out = nn.ReLU(), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = torch.relu(self.conv(x)).flatten(1)
        y: Tensor = self.out(self.act(self.second(self.act(self.first(hidden)))))
        return y


def trained(backend: str, threads: int, steps: int = 10, bf16: bool = False) -> tuple[nn.Module, list[float]]:
    """A sparse network after some steps of AdamW with decay, and its losses."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model: nn.Module = Small()
    x, target = torch.randn(64, 3, 12, 12), torch.randint(10, (64,))
    masks = sf.prune(model, density=0.2, allocation="uniform")
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        plan = sf.plan(model, masks, x, backend=backend)
    model = sf.sparsify(model, masks, plan=plan)
    optimizer = torch.optim.AdamW(sf.param_groups(model, weight_decay=0.1), lr=1e-3)
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = model(x)
        assert y.dtype == (torch.bfloat16 if bf16 else torch.float32)
        loss = nn.functional.cross_entropy(y.float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


@pytest.fixture(autouse=True)
def own_threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_two_trainings_are_equal_to_the_bit(threads: int) -> None:
    (one, losses), (two, again) = trained("cpu", threads), trained("cpu", threads)
    assert losses == again and losses[-1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_adamw_with_decay_means_the_same_as_on_dense() -> None:
    (ours, losses), (dense, expected) = trained("cpu", 1), trained("dense", 1)
    ours, dense = sf.densify(ours), sf.densify(dense)
    for (name, a), b in zip(ours.named_parameters(), dense.parameters(), strict=True):
        # Adam divides by the root of the second moment, which makes much of little where a gradient is near zero.
        assert relative_error(a, b) <= 1e-3, name
        assert torch.equal(a == 0, b == 0), name
    assert losses == pytest.approx(expected, rel=1e-4)


def test_the_plan_chains_and_fuses_what_it_saw() -> None:
    model, x = Small(), torch.randn(8, 3, 12, 12)
    plan = sf.plan(model, sf.prune(model, density=0.2, allocation="uniform"), x, backend="cpu")
    found = {row.name: (row.feature_major, row.relu) for row in plan.rows}
    assert found == {
        "conv.weight": (False, False),
        "first.weight": (True, True),
        "second.weight": (True, True),
        "out.weight": (False, False),
    }


def test_a_copy_in_the_middle_of_training_goes_on_alike() -> None:
    model, _ = trained("cpu", 1, steps=2)
    twin, x = copy.deepcopy(model), torch.randn(33, 3, 12, 12)
    assert torch.equal(model(x), twin(x))
    for one in (model, twin):
        one.zero_grad()
        one(x).sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad)


def test_bfloat16_under_autocast_learns_like_float32() -> None:
    (model, losses), (_, expected) = trained("cpu", 1, bf16=True), trained("cpu", 1)
    assert losses == pytest.approx(expected, rel=2e-2)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
