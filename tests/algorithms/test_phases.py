"""GMP, AC/DC, SPDF and static masks: when they change, and to what."""

import pytest
import torch

from sparseflow.masks import Masks
from sparseflow.masks.dynamic import Dynamic
from sparseflow.masks.phases import ACDC, GMP, SPDF, Static

WEIGHTS = {"a": torch.arange(1.0, 101.0).view(10, 10), "b": torch.arange(0.5, 50.5).view(5, 10)}


def densities(method: Dynamic, steps: int) -> list[float]:
    """The density in each step's forward, trained by a network whose weights do not move."""
    masks, found = method.start(WEIGHTS, 0), []
    for step in range(steps):
        found.append(round(masks.density, 4))
        if method.due(step):
            masks = method.update(step, {n: w * masks[n] for n, w in WEIGHTS.items()}, masks, None, 0)
    return found


def test_gmp_follows_the_cubic_schedule() -> None:
    found = densities(GMP(0.1, until=8, begin=2, every=2), 11)
    # s_t = 0.9 - 0.9 (1 - (t - 2) / 6)^3 after steps 2, 4, 6 and 8, rounded to whole weights of 150.
    expected = [1 - 0.9 * (1 - (1 - (t - 2) / 6) ** 3) for t in (2, 4, 6, 8)]
    assert found[:3] == [1.0, 1.0, 1.0]
    assert found[3::2][:4] == pytest.approx(expected, abs=1 / 150)
    assert found[9:] == [0.1, 0.1]


def test_gmp_ends_at_its_density_also_where_the_steps_do_not_divide() -> None:
    assert densities(GMP(0.2, until=7, every=3), 9)[-1] == 0.2


def test_what_gmp_pruned_does_not_return() -> None:
    method = GMP(0.1, until=8, every=2)
    masks = Masks({name: weight > weight.mean() for name, weight in WEIGHTS.items()})
    grown = {name: torch.ones_like(weight) for name, weight in WEIGHTS.items()}
    assert method.update(4, grown, masks, None, 0).issubset(masks)


def test_acdc_alternates_and_ends_compressed() -> None:
    found = densities(ACDC(0.2, warm_up=2, phase=2, final=8), 11)
    assert found == [1, 1, 0.2, 0.2, 1, 1, 0.2, 0.2, 0.2, 0.2, 0.2]


def test_acdc_compresses_to_the_largest_of_all_but_for_its_floor() -> None:
    method = ACDC(0.2, 1, 1, 3)
    masks = method.update(0, WEIGHTS, method.start(WEIGHTS, 0), None, 0)
    assert masks.kept == {"a": 29, "b": 1}
    assert masks["a"].flatten()[-29:].all() and masks["b"][-1, -1]


def test_spdf_is_uniform_then_dense() -> None:
    method = SPDF(0.3, sparse_steps=3)
    assert densities(method, 5) == [0.3, 0.3, 0.3, 1.0, 1.0]
    assert method.start(WEIGHTS, 0).kept == {"a": 30, "b": 15}


def test_static_never_changes() -> None:
    assert densities(Static(0.4), 4) == [0.4] * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GMP(0.5, until=10, initial_density=0.4), "GMP: .* got density=0.5, initial_density=0.4"),
        (lambda: GMP(0.5, until=10, begin=10), "GMP: expected 0 ≤ begin < until .* got begin=10, until=10"),
        (lambda: ACDC(0.5, 4, 1, 3), "AC/DC: expected 0 < warm_up ≤ final .* got warm_up=4, final=3, phase=1"),
        (lambda: ACDC(1.5, 1, 1, 3), "AC/DC: expected a density in .* got 1.5"),
        (lambda: SPDF(0.5, 0), "SPDF: expected sparse_steps ≥ 1, got 0"),
    ],
)
def test_numbers_out_of_range(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
