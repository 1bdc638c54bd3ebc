from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.masks import erk_densities
from sparseflow.masks.allocation import Layer, keep_total, layerwise_counts, share_out

LENET = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.10, [0.07957, 0.23019, 1.0]),
        (0.05, [0.03848, 0.11133, 0.91851]),
        (0.02, [0.01539, 0.04453, 0.36740]),
        (0.01, [0.00770, 0.02227, 0.18370]),
    ],
)
def test_erk_of_lenet(density: float, expected: list[float]) -> None:
    densities = erk_densities(LENET, density)
    assert [round(value, 5) for value in densities.values()] == expected
    mean = sum(densities[name] * rows * columns for name, (rows, columns) in LENET.items()) / 266_200
    assert mean == pytest.approx(density, abs=1e-9)


def test_erk_sums_all_four_sides_of_a_convolution() -> None:
    densities = erk_densities({"conv": (16, 8, 3, 3), "fc": (64, 64)}, 0.1)
    ratio = (30 / (16 * 8 * 9)) / (128 / (64 * 64))
    assert densities["conv"] / densities["fc"] == pytest.approx(ratio)


def test_erk_refuses_a_density_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"density: expected the fraction to keep, in \(0, 1\], got 1.5"):
        erk_densities(LENET, 1.5)


def test_share_out_settles_fractions_by_largest_remainder() -> None:
    # Shares 2.5, 5.75 and 1.75 of 10.
    weights = {"a": Fraction(10), "b": Fraction(23), "c": Fraction(7)}
    none, all_ = dict.fromkeys(weights, 0), dict.fromkeys(weights, 10)
    assert share_out(weights, none, all_, 10) == {"a": 2, "b": 6, "c": 2}


def test_share_out_gives_a_tie_to_the_first() -> None:
    weights = {"a": Fraction(1), "b": Fraction(1), "c": Fraction(1)}
    none, all_ = dict.fromkeys(weights, 0), dict.fromkeys(weights, 9)
    assert share_out(weights, none, all_, 10) == {"a": 4, "b": 3, "c": 3}


def test_share_out_redistributes_what_exceeds_a_limit() -> None:
    weights = {"a": Fraction(6), "b": Fraction(3), "c": Fraction(3)}
    assert share_out(weights, {"a": 0, "b": 0, "c": 5}, {"a": 4, "b": 9, "c": 9}, 12) == {
        "a": 4,
        "b": 3,
        "c": 5,
    }


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 20), st.integers(0, 20)), min_size=1), st.data())
def test_share_out_is_exact_and_between_the_limits(rows: list[tuple[int, int, int]], data: st.DataObject) -> None:
    weights = {str(i): Fraction(weight) for i, (weight, _, _) in enumerate(rows)}
    lower = {str(i): min(limits) for i, (_, *limits) in enumerate(rows)}
    upper = {str(i): max(limits) for i, (_, *limits) in enumerate(rows)}
    total = data.draw(st.integers(sum(lower.values()), sum(upper.values())))
    counts = share_out(weights, lower, upper, total)
    assert sum(counts.values()) == total
    assert all(lower[name] <= counts[name] <= upper[name] for name in weights)
    # Proportional: a layer strictly inside its limits gets its weight's worth, to within rounding.
    inside = [name for name in weights if lower[name] < counts[name] < upper[name]]
    scales = [(counts[name] + step) / weights[name] for name in inside for step in (-1, 1)]
    assert not inside or max(scales[::2]) <= min(scales[1::2])


def layers(**kept: int) -> dict[str, Layer]:
    return {name: Layer((100,), 100, count) for name, count in kept.items()}


def test_counts_round_half_to_even() -> None:
    # 0.1 · 25 = 2.5 and 0.1 · 35 = 3.5
    assert layerwise_counts(layers(a=25, b=35), 0.1, None) == {"a": 23, "b": 31}
    assert keep_total(layers(a=25), None, 0.1) == 23
    assert keep_total(layers(a=25), 0.125, None) == 12


def test_first_glob_that_matches_gives_the_rate() -> None:
    counts = layerwise_counts(layers(conv1=100, conv2=100, fc=100), 0.5, {"conv1": 0.1, "conv*": 0.2})
    assert counts == {"conv1": 90, "conv2": 80, "fc": 50}


def test_glob_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rates: no parameter matching 'fd\*'; available: fc1, fc2"):
        layerwise_counts(layers(fc1=10, fc2=10), 0.5, {"fd*": 0.1})


def test_layers_without_a_rate_are_named() -> None:
    with pytest.raises(ValueError, match="no glob matches fc2; add one, or pass rate="):
        layerwise_counts(layers(fc1=10, fc2=10), None, {"fc1": 0.1})


def test_a_rate_out_of_range_names_its_glob() -> None:
    with pytest.raises(ValueError, match=r"rates\['fc\*'\]: expected .* in \[0, 1\), got 1.0"):
        layerwise_counts(layers(fc1=10), None, {"fc*": 1.0})
