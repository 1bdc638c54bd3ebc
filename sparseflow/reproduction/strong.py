"""Rows about strong tickets, their theory, Sign-In and Muon. Methods are imported when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sparseflow.hardware.model import dense_state
from sparseflow.reproduction.outcome import Outcome
from sparseflow.reproduction.tickets import lenet_trainer
from sparseflow.training.schedules import cosine

# n* of one 100×100 layer of two, ε = 0.01, c = 1, by density.
N_STAR = {0.5: 950, 0.2: 1_237, 0.1: 1_851, 0.05: 2_966, 0.01: 10_119, 0.001: 68_913}
# By ratio n H₂(k/n) / log₂(k/ε): what the success rate must lie between.
RATES = {0.7: (0.0, 0.2), 1.0: (0.2, 0.5), 1.4: (0.85, 1.0), 2.0: (0.98, 1.0)}


def popped_up(seed: int) -> float:
    """The test accuracy, in points, of half of an untrained LeNet, found in 800 steps."""
    supermasks: Any = import_module("sparseflow.masks.supermasks")
    strong: Any = import_module("sparseflow.training.strong_ticket")
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    trainer = lenet_trainer(seed, 800, optimizer=sgd, batch_size=128, schedule=cosine(800))
    # The call itself proves that no weight has moved.
    ticket = strong.strong_ticket(trainer, supermasks.EdgePopup(0.5))
    return 100 * float(ticket.provenance["metrics"]["test_accuracy"])


def edge_popup(accuracies: Sequence[float]) -> Outcome:
    """Row 14: an untrained network holds one that is right three times in four."""
    shown = ", ".join(f"{one:.1f}" for one in accuracies)
    return Outcome(min(accuracies) >= 75, f"{shown} %; weights untouched")


def subset_sums(seeds: Sequence[int]) -> Outcome:
    """Row 15: success rates on either side of the threshold."""
    theory: Any = import_module("sparseflow.theory")
    shown, holds = [], True
    for k in (2, 3):
        for ratio, (low, high) in RATES.items():
            n = theory.smallest_sample(k, 0.01, ratio)
            rate = theory.success_rate(n, k, 0.01, trials=200, seed=seeds[0]).rate
            holds = holds and low <= rate <= high
            shown.append(f"k={k} c={ratio}: {rate:.2f}")
    return Outcome(holds, "; ".join(shown))


def planner(seeds: Sequence[int]) -> Outcome:
    """Row 16: the fixed point of theorem 3, by its residual, its order and its values; and theorem 5 below it."""
    theory: Any = import_module("sparseflow.theory")
    worst, found = 0.0, []
    for density in N_STAR:
        n = theory.fixed_point(100, 100, 2, density, 0.01)
        scale = 2 * 2 * 100 * 100 * density / 0.01
        worst = max(worst, abs(math.log2(scale * n) ** 2 / theory.entropy(density) / n - 1))
        found.append(n)
    same = all(abs(n - expected) < 1 for n, expected in zip(found, N_STAR.values()))
    rises = all(a < b for a, b in pairwise(found))
    holds = worst < 1e-9 and same and rises
    said = f"residual {worst:.0e}; values {'equal' if same else 'DIFFER'}; {'rises' if rises else 'DOES NOT RISE'}"
    return Outcome(holds, said)


def sign_in_toy(seeds: Sequence[int]) -> Outcome:
    """Row 17: the closed condition against the flow itself, integrated, on 200 draws off a 2 % margin."""
    algebra: Any = import_module("sparseflow.masks.sign_in")
    generator = torch.Generator().manual_seed(seeds[0])
    draws = torch.rand(4, 2_000, generator=generator, dtype=torch.float64)
    a, w, beta_a, beta_w = -0.1 - draws[0], 0.1 + draws[1], 0.2 + draws[2], 0.2 + draws[3]
    left = algebra.speed(a, beta_a) - beta_a
    right = algebra.speed(w, beta_w) - beta_w
    clear = ((left - right).abs() > 0.02 * torch.maximum(left, right)).nonzero().flatten()[:200]
    chosen = [one[clear] for one in (a, w, beta_a, beta_w)]
    agree = int((algebra.recovers(*chosen) == _recovered(*chosen)).sum())
    return Outcome(agree == len(clear) == 200, f"{agree} of {len(clear)}")


def _recovered(a: Tensor, w: Tensor, beta_a: Tensor, beta_w: Tensor) -> Tensor:
    """Whether the loss of a · relu(w x) against relu(x) goes to 0 under the flow: Runge-Kutta of fourth order."""

    def flow(a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        # L = (a w − 1)² / 4 for w > 0, and a dead unit for w ≤ 0.
        error = torch.where(w > 0, (a * w - 1) / 2, 0.0)
        return -(beta_a**2 + 4 * a**2).sqrt() * error * w, -(beta_w**2 + 4 * w**2).sqrt() * error * a

    h = 0.02
    for _ in range(2_500):
        k1 = flow(a, w)
        k2 = flow(a + h / 2 * k1[0], w + h / 2 * k1[1])
        k3 = flow(a + h / 2 * k2[0], w + h / 2 * k2[1])
        k4 = flow(a + h * k3[0], w + h * k3[1])
        a = a + h / 6 * (k1[0] + 2 * k2[0] + 2 * k3[0] + k4[0])
        w = w + h / 6 * (k1[1] + 2 * k2[1] + 2 * k3[1] + k4[1])
    return (w > 0) & (a > 0) & ((a * w - 1).abs() < 0.1)


def remembered(seed: int) -> dict[str, float]:
    """By optimizer, the correlation of the second layer's weights with their start after 1,000 steps."""
    muon: Any = import_module("sparseflow.training.muon")
    found: Any = import_module("sparseflow.training.erasure")
    optimizers = {
        "SGD": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        "Adam": partial(torch.optim.Adam, lr=1e-3),
        "Muon": partial(muon.Muon, lr=0.02),
    }
    known = {}
    for name, optimizer in optimizers.items():
        trainer = lenet_trainer(seed, 1_000, optimizer=optimizer, batch_size=128, evaluate_every=1_000)
        start = dense_state(trainer.model)
        trainer.train(trainer.model)
        known[name] = float(found.erasure(start, dense_state(trainer.model))["fc2.weight"].correlation)
    return known


def muon_erasure(measured: Sequence[Mapping[str, float]]) -> Outcome:
    """Row 20: what each optimizer's weights still know of their initialisation."""
    known = {name: [one[name] for one in measured] for name in measured[0]}
    shown = "; ".join(f"{name} {', '.join(f'{one:.3f}' for one in each)}" for name, each in known.items())
    return Outcome(max(known["Muon"]) < 0.75 < min(known["Adam"]), f"correlation: {shown}")
