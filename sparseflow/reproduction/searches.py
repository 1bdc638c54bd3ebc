"""Rows about what a search does exactly: its counts, its invariants, and its rewinding."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparseflow.hardware.model import dense_state
from sparseflow.hardware.plan import sparsify
from sparseflow.masks.masks import Masks
from sparseflow.masks.select import prune_tensors
from sparseflow.reproduction.outcome import Outcome
from sparseflow.reproduction.small import same_bits, small_trainer
from sparseflow.training.lottery import imp
from sparseflow.training.pruning import prune
from sparseflow.training.round import masked

LENET = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}
PRINTED = {1: 80.0, 3: 51.3, 7: 21.1, 9: 13.5, 15: 3.6}
ROUND_7 = [49_325, 6_291, 478]
_SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def schedule(seeds: Sequence[int]) -> Outcome:
    """Row 1: what 20 % a round, 10 % of the output layer, leave of LeNet-300-100, weight by weight."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in LENET.items()}
    masks = Masks.ones(LENET)
    wrong = []
    for number in range(1, 25):
        kept = {
            name: count - round((0.1 if name == "fc3.weight" else 0.2) * count) for name, count in masks.kept.items()
        }
        masks = prune_tensors(weights, masks, allocation="layerwise", rate=0.2, rates={"fc3.weight": 0.1})
        right = masks.kept == kept and round(100 * masks.density, 1) == PRINTED.get(
            number, round(100 * masks.density, 1)
        )
        if not right or (number == 7 and list(masks.kept.values()) != ROUND_7):
            wrong.append(number)
    return Outcome(not wrong, "all of rounds 1 to 24" if not wrong else f"wrong in rounds {wrong}")


def invariants(seeds: Sequence[int]) -> Outcome:
    """Row 2: the rewind is exact, what is pruned stays zero, nothing returns; by every optimizer at hand."""
    broken = [
        f"{name}, seed {seed}"
        for name, (optimizer, backend, decay) in _optimizers().items()
        for seed in seeds
        if not _holds(seed, optimizer, backend, decay)
    ]
    tried = ", ".join(_optimizers())
    return Outcome(not broken, f"bitwise: {tried}" if not broken else f"broken: {', '.join(broken)}")


def rewinding(seeds: Sequence[int]) -> Outcome:
    """Row 8: rewinding to 0 is plain pruning, rewinding to k starts at theta_k, learning rates alone keep theta_T."""
    found = {
        "k = 0 is IMP": all(_is_plain(seed) for seed in seeds),
        "k = 5 starts at theta_5": all(_starts_at(seed, 5) for seed in seeds),
        "LRR keeps theta_T": all(_keeps_trained(seed) for seed in seeds),
    }
    return Outcome(all(found.values()), "; ".join(f"{what}: {'yes' if held else 'no'}" for what, held in found.items()))


def _optimizers() -> dict[str, tuple[Callable[..., torch.optim.Optimizer], str, float]]:
    made: dict[str, tuple[Callable[..., torch.optim.Optimizer], str, float]] = {
        "SGD with momentum": (_SGD, "dense-compact", 0.0),
        "Adam": (partial(torch.optim.Adam, lr=0.01), "dense-compact", 0.0),
        "AdamW with decay": (partial(torch.optim.AdamW, lr=0.01), "dense", 0.1),
    }
    if importlib.util.find_spec("sparseflow.training.muon") is not None:
        muon: Any = importlib.import_module("sparseflow.training.muon")
        made["Muon"] = (muon.Muon, "dense", 0.0)
    return made


def _holds(seed: int, optimizer: Callable[..., torch.optim.Optimizer], backend: str, decay: float) -> bool:
    trainer = small_trainer(seed, optimizer, weight_decay=decay)
    theta_0 = dense_state(trainer.model)
    before: Masks | None = None
    for ticket in imp(trainer, rounds=3, rate=0.4, backend=backend):
        trained = dense_state(trainer.model)
        still = all(not bool(trained[name][~mask].any()) for name, mask in ticket.masks.items())
        nested = before is None or ticket.masks.issubset(before)
        if not (still and nested and same_bits(dict(ticket.rewind), masked(theta_0, ticket.masks))):
            return False
        before = ticket.masks
    return True


def _is_plain(seed: int) -> bool:
    """Two rounds by the search, and by hand as the paper has them."""
    trainer = small_trainer(seed, _SGD)
    theirs = [(dict(t.masks), dense_state(trainer.model)) for t in imp(trainer, rounds=2, rate=0.4, backend="dense")]
    by_hand = small_trainer(seed, _SGD)
    masks: Mapping[str, Tensor] = Masks.ones({name: mask.shape for name, mask in theirs[0][0].items()})
    for number, (their_masks, their_weights) in enumerate(theirs):
        model = by_hand.build()
        by_hand.train(sparsify(model, masks, backend="dense") if number else model)
        if not same_bits(dict(masks), their_masks) or not same_bits(dense_state(model), their_weights):
            return False
        masks = prune(model, rate=0.4, masks=masks)
    return True


def _starts_at(seed: int, k: int) -> bool:
    plain = small_trainer(seed, _SGD)
    seen: dict[str, Tensor] = {}
    plain.train(plain.model, at_step={k: lambda: seen.update(dense_state(plain.model))})
    _, ticket = imp(small_trainer(seed, _SGD), rounds=1, rate=0.4, rewind_to=k, backend="dense")
    return same_bits(dict(ticket.rewind), masked(seen, ticket.masks))


def _keeps_trained(seed: int) -> bool:
    trainer = small_trainer(seed, _SGD)
    tickets = imp(trainer, rounds=1, rate=0.4, rewind="learning_rate", backend="dense")
    next(tickets)
    theta_t = dense_state(trainer.model)
    ticket = next(tickets)
    return same_bits(dict(ticket.rewind), masked(theta_t, ticket.masks))
