"""Row 18: are the signs of a trained ticket what it has learned?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from sparseflow.reproduction.outcome import Outcome, points
from sparseflow.reproduction.short import STEPS, Found, short_search
from sparseflow.reproduction.tickets import layerwise, lenet_trainer, train_masked

_ARMS = ("ticket", "signs", "magnitudes", "neither")


def arms(seed: int) -> dict[str, float]:
    """Accuracies of a ticket, and of its mask with trained signs, trained magnitudes, and neither."""
    found = short_search(seed, **layerwise(1))
    fresh = _fresh(seed, found)
    signs = {name: found.trained[name].sign() * fresh[name].abs() for name in fresh}
    magnitudes = {name: fresh[name].sign() * found.trained[name].abs() for name in fresh}
    return {
        "ticket": found.accuracy,
        "signs": _accuracy(seed, found, signs),
        "magnitudes": _accuracy(seed, found, magnitudes),
        "neither": _accuracy(seed, found, fresh),
    }


def signs_carry(found: Sequence[Mapping[str, float]]) -> Outcome:
    """Row 18: a ticket's mask with its trained signs, magnitudes drawn anew; and the other way round."""
    gaps = [one["signs"] - one["magnitudes"] for one in found]
    beside = [" ".join(f"{one[arm]:.2f}" for arm in _ARMS) for one in found]
    said = f"{points(gaps)} points; {', '.join(_ARMS)}: {'; '.join(beside)} %"
    return Outcome(min(gaps) > 0, said)


def _fresh(seed: int, found: Found) -> dict[str, Tensor]:
    """Weights of another draw, by the names that have masks."""
    model = lenet_trainer(seed, STEPS).build("fresh")
    return {name: model.get_parameter(name).detach().clone() for name in found.masks}


def _accuracy(seed: int, found: Found, weights: Mapping[str, Tensor]) -> float:
    trained = train_masked(lenet_trainer(seed, STEPS), found.masks, {**found.start, **weights})
    return 100 * trained.test.accuracy
