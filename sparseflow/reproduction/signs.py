"""Row 18: are the signs of a trained ticket what it has learned?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sparseflow.reproduction.outcome import Outcome, points
from sparseflow.reproduction.short import STEPS, Found, short_search
from sparseflow.reproduction.tickets import layerwise, lenet_trainer, train_masked


def signs_carry(seeds: Sequence[int], folder: Path) -> Outcome:
    """Row 18: a ticket's mask with its trained signs, magnitudes drawn anew; and the other way round."""
    gaps, beside = [], []
    for seed in seeds:
        found = short_search(seed, **layerwise(1))
        fresh = _fresh(seed, found)
        signs = _accuracy(seed, found, {name: found.trained[name].sign() * fresh[name].abs() for name in fresh})
        magnitudes = _accuracy(seed, found, {name: fresh[name].sign() * found.trained[name].abs() for name in fresh})
        neither = _accuracy(seed, found, fresh)
        gaps.append(signs - magnitudes)
        beside.append(f"{found.accuracy:.2f} {signs:.2f} {magnitudes:.2f} {neither:.2f}")
    said = f"{points(gaps)} points; ticket, signs, magnitudes, neither: {'; '.join(beside)} %"
    return Outcome(min(gaps) > 0, said)


def _fresh(seed: int, found: Found) -> dict[str, Tensor]:
    """Weights of another draw, by the names that have masks."""
    model = lenet_trainer(seed, STEPS).build("fresh")
    return {name: model.get_parameter(name).detach().clone() for name in found.masks}


def _accuracy(seed: int, found: Found, weights: Mapping[str, Tensor]) -> float:
    trained = train_masked(lenet_trainer(seed, STEPS), found.masks, {**found.start, **weights})
    return 100 * trained.test.accuracy
