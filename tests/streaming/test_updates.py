"""Updates in the store, bit for bit those of torch.optim on the same values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_weights import densities, made, random_mask, seeds

from sparseflow.hardware.streaming import store_parameter
from sparseflow.hardware.streaming.updates import Adam, rule_of

rates = st.floats(1e-4, 1.0)
fractions = st.one_of(st.just(0.0), st.floats(0.01, 0.99))
sgd = st.fixed_dictionaries(
    {
        "lr": rates,
        "momentum": st.floats(0.1, 0.99),
        "dampening": fractions,
        "weight_decay": fractions,
        "nesterov": st.booleans(),
        "maximize": st.booleans(),
    }
).map(lambda options: options | ({"dampening": 0.0} if options["nesterov"] else {}))
plain_sgd = st.fixed_dictionaries({"lr": rates, "weight_decay": fractions, "maximize": st.booleans()})
adam = st.fixed_dictionaries(
    {
        "lr": rates,
        "betas": st.tuples(fractions, fractions),
        "eps": st.floats(1e-10, 1e-2),
        "weight_decay": fractions,
        "maximize": st.booleans(),
    }
)
optimizers = st.one_of(
    st.tuples(st.just(torch.optim.SGD), st.one_of(sgd, plain_sgd)),
    st.tuples(st.sampled_from([torch.optim.Adam, torch.optim.AdamW]), adam),
)
TORCH_KEYS = {"momentum": "momentum_buffer"}


@given(optimizers, densities, seeds, st.lists(rates, min_size=3, max_size=6), st.sets(st.integers(0, 5)))
@settings(max_examples=60, deadline=None)
def test_steps_are_those_of_torch(
    optimizer: tuple[type[torch.optim.Optimizer], dict[str, Any]],
    density: float,
    seed: int,
    learning_rates: list[float],
    commits: set[int],
) -> None:
    """Over several steps, each with a learning rate of its own, with commits in between."""
    mask, weight = random_mask((9, 37), density, seed), torch.randn(9, 37)
    values = torch.nn.Parameter(weight[mask])
    kind, options = optimizer
    theirs = kind([values], foreach=False, **options)  # type: ignore[call-arg]
    store = made(None, {"w": weight}, {"w": mask}, rule_of(theirs, theirs.param_groups[0]).keys)
    for step, lr in enumerate(learning_rates):
        theirs.param_groups[0]["lr"] = lr
        values.grad = torch.randn(values.shape)
        store.update("w", values.grad.clone(), rule_of(theirs, theirs.param_groups[0]))
        theirs.step()
        if step in commits:
            store.commit()
    assert torch.equal(store.values("w"), values.detach())
    for key in store.keys("w"):
        assert torch.equal(store.state("w", key), theirs.state[values][TORCH_KEYS.get(key, key)])


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(None, {"w": (weight := torch.randn(1000))}, {})
    gradient, rule = torch.randn(1000), Adam(lr=0.01, weight_decay=0.1)
    whole.update("w", gradient, rule)
    monkeypatch.setattr(store_parameter, "CHUNK", 48)
    chunked = made(None, {"w": weight}, {})
    chunked.update("w", gradient, rule)
    assert torch.equal(chunked.values("w"), whole.values("w"))
    assert torch.equal(chunked.state("w", "exp_avg_sq"), whole.state("w", "exp_avg_sq"))


def test_what_a_store_cannot_run_is_refused() -> None:
    values = [torch.nn.Parameter(torch.ones(2))]
    for optimizer, name in (
        (torch.optim.Adagrad(values), "Adagrad"),
        (torch.optim.AdamW(values, amsgrad=True), "AdamW with amsgrad=True"),
        (torch.optim.SGD(values, differentiable=True), "SGD with differentiable=True"),
    ):
        with pytest.raises(ValueError, match=rf"cannot run {name}; it can run SGD .*, Adam and AdamW"):
            rule_of(optimizer, optimizer.param_groups[0])


def test_a_rule_needs_the_state_that_the_store_has() -> None:
    store = made(None, {"w": torch.ones(3)}, {}, ("momentum",))
    with pytest.raises(ValueError, match=r"'w': the store keeps the optimizer state \('momentum',\), and Adam needs"):
        store.update("w", torch.ones(3), Adam(lr=0.1))
