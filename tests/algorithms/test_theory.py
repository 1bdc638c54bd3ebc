"""The theory of strong tickets: its equations solved, and subset sums counted two ways and tried out."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

import sparseflow as sf
from sparseflow.cli import app
from sparseflow.theory import bounds, subset_sum

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.01, 0.001)
SAMPLES = (950, 1237, 1851, 2966, 10_119, 68_913)


def residual(n: float, d: int, d_out: int, layers: int, density: float, error: float) -> float:
    bits = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    return abs(n - math.log2(2 * layers * d * d_out * density * n / error) ** 2 / bits)


def test_the_fixed_point_of_theorem_3() -> None:
    found = [sf.theory.fixed_point(100, 100, 2, density, 0.01) for density in DENSITIES]
    assert [round(n) for n in found] == list(SAMPLES)
    assert all(residual(n, 100, 100, 2, density, 0.01) < 1e-9 for n, density in zip(found, DENSITIES))
    # Another solution, near the pole of the logarithm, is no size of a network.
    assert all(residual(n - 1, 100, 100, 2, density, 0.01) > 1e-3 for n, density in zip(found, DENSITIES))


@settings(deadline=None)
@given(
    d=st.integers(1, 5000),
    d_out=st.integers(1, 5000),
    layers=st.integers(1, 100),
    density=st.floats(1e-3, 0.5),
    error=st.floats(1e-6, 0.1),
)
def test_a_sparser_network_needs_a_wider_one(d: int, d_out: int, layers: int, density: float, error: float) -> None:
    n = sf.theory.fixed_point(d, d_out, layers, density, error)
    assert residual(n, d, d_out, layers, density, error) < 1e-9 * max(1, n / 1e5)
    assert sf.theory.fixed_point(d, d_out, layers, density / 2, error) > n
    assert sf.theory.fixed_point(d, d_out, layers, density, error / 2) > n
    assert sf.theory.fixed_point(d, d_out, layers, density, error, constant=2) > n


@pytest.mark.parametrize("density", DENSITIES)
def test_the_upper_bound_is_above_the_lower(density: float) -> None:
    n = sf.theory.fixed_point(100, 100, 2, density, 0.01)
    assert sf.theory.lower_bound(100, density, 0.01) <= 2 * n * 100 * (100 + 100)
    assert 0.5 * math.log2(density * n / 0.01) / sf.theory.entropy(density) <= n


def test_theorem_5_is_solved() -> None:
    n = sf.theory.lower_bound(30, 0.1, 0.01)
    assert n == pytest.approx(450 * math.log2(0.1 * n / 0.01) / sf.theory.entropy(0.1), rel=1e-12)
    with pytest.raises(ValueError, match="an error below 1/16, got density=0"):
        sf.theory.lower_bound(30, 0.1, 0.1)


@pytest.mark.parametrize(
    ("k", "error", "constant", "n", "ratio"),
    [
        (3, 0.01, 0.7, 6, 0.73),
        (3, 0.01, 1.0, 9, 1.00),
        (3, 0.01, 1.4, 18, 1.42),
        (3, 0.01, 2.0, 51, 2.00),
        (2, 0.01, 0.7, 6, 0.72),
        (2, 0.01, 1.0, 12, 1.02),
        (2, 0.01, 1.4, 32, 1.41),
        (2, 0.01, 2.0, 149, 2.00),
        (3, 0.03, 0.7, 6, 0.90),
        (3, 0.03, 1.0, 7, 1.04),
        (3, 0.03, 1.4, 12, 1.47),
        (3, 0.03, 2.0, 26, 2.02),
    ],
)
def test_the_smallest_sample_of_theorem_2(k: int, error: float, constant: float, n: int, ratio: float) -> None:
    assert sf.theory.smallest_sample(k, error, constant) == n
    assert round(sf.theory.subset_ratio(n, k, error), 2) == ratio
    assert n == 2 * k or sf.theory.subset_ratio(n - 1, k, error) < constant


def test_the_corollaries() -> None:
    bits, k = math.log2(100), 2000
    first, second = sf.theory.uniform_sample(3, 0.01), sf.theory.large_subset_size(k, 0.01)
    assert first * sf.theory.entropy(3 / first) >= math.log2(300) ** 2
    assert (first - 1) * sf.theory.entropy(3 / (first - 1)) < math.log2(300) ** 2
    assert second is not None and second * sf.theory.entropy(k / second) >= 2 * bits**2
    # 2 (log₂² k + 2 log₂ k log₂(1/ε)) is 380.5 for k = 290, and 287.3 for k = 280.
    limits = {k: 2 * (math.log2(k) ** 2 + 2 * math.log2(k) * bits) for k in (340, 360)}
    assert {k: sf.theory.large_subset_size(k, 0.01) is not None for k in limits} == {
        k: k >= limit for k, limit in limits.items()
    }


def test_at_a_density() -> None:
    asked, bits = sf.theory.sample_at_density(0.1, 0.01), sf.theory.entropy(0.1)
    assert asked.theorem_2 == pytest.approx(math.log2(10 * asked.theorem_2) / bits, rel=1e-12)
    assert asked.corollary_1 == pytest.approx(math.log2(10 * asked.corollary_1) ** 2 / bits, rel=1e-12)
    assert asked.corollary_2 is None
    large = sf.theory.sample_at_density(0.5, 1e-300)
    assert large.corollary_2 == pytest.approx(2 * math.log2(1e300) ** 2, rel=1e-12)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(-4, 4), st.data())
def test_two_ways_to_find_a_subset_agree(seed: int, n: int, target: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    values = np.random.default_rng(seed).uniform(-1, 1, n)
    both = [find(values, target, k) for find in (subset_sum.brute_force, subset_sum.meet_in_the_middle)]
    assert both[0] == pytest.approx(both[1], abs=1e-12)


def test_a_subset_of_known_sum() -> None:
    values = np.array([0.5, -0.25, 0.125, 0.75])
    assert subset_sum.brute_force(values, 0.875, 2) == 0.0
    assert subset_sum.meet_in_the_middle(values, 0.875, 2) == 0.0
    assert subset_sum.meet_in_the_middle(values, 1.0, 2) == 0.125
    # Not with the size that was asked for.
    assert subset_sum.meet_in_the_middle(values, 0.5, 4) == 0.625


@pytest.mark.parametrize("k", [2, 3])
def test_success_rises_with_the_ratio_of_theorem_2(k: int) -> None:
    rates = [
        sf.theory.success_rate(sf.theory.smallest_sample(k, 0.01, ratio), k, 0.01, trials=200).rate
        for ratio in (0.7, 1.0, 1.4, 2.0)
    ]
    assert rates[0] <= 0.2 <= rates[1] <= 0.5 and rates[2] >= 0.85 and rates[3] >= 0.98
    assert rates == sorted(rates)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("error", [0.1, 0.03, 0.01])
def test_a_single_number_is_met_nine_times_in_ten(k: int, error: float) -> None:
    n = {2: {0.1: 11, 0.03: 18, 0.01: 30}, 3: {0.1: 10, 0.03: 13, 0.01: 17}, 4: {0.1: 12, 0.03: 13, 0.01: 14}}[k][error]
    # The constant of theorem 2 that it takes falls with the error.
    assert 1.39 <= round(sf.theory.subset_ratio(n, k, error), 2) <= 2.07
    # 0.9 less four standard deviations of 200 trials.
    assert sf.theory.success_rate(n, k, error, trials=200).rate >= 0.81


@pytest.mark.parametrize(("n", "error"), [(12, 0.1), (15, 0.03)])
def test_subsets_of_any_size_cover_an_interval(n: int, error: float) -> None:
    # 0.97 where z is tried on a grid; here every z counts, over 100 trials, whose standard deviation is 0.02.
    assert sf.theory.covering_rate(n, error, trials=100).rate >= 0.93
    assert sf.theory.covering_rate(n // 3, error, trials=20).rate <= 0.2


def test_what_covers() -> None:
    assert subset_sum._covers(np.linspace(-1, 1, 11), 0.11)
    assert not subset_sum._covers(np.linspace(-1, 1, 11), 0.09)
    assert not subset_sum._covers(np.linspace(-1, 0.5, 100), 0.1)


def test_a_network() -> None:
    found = sf.theory.of_network([100, 100, 100], 0.1, 0.01, trials=5)
    assert [layer.sample for layer in found.layers] == [sf.theory.fixed_point(100, 100, 2, 0.1, 0.01)] * 2
    # For equal widths m / m_t = 4 n*.
    assert found.layers[0].overparameterisation == pytest.approx(4 * found.layers[0].sample)
    assert found.parameters / found.target_parameters == pytest.approx(4 * found.layers[0].sample, rel=1e-5)
    assert "c = 1, shape only" in str(found) and "found a subset" in str(found)
    assert "c = 2.5, shape only" in str(sf.theory.of_network([10, 10], 0.1, constant=2.5, trials=0))
    assert sf.theory.widths_of(sf.models.lenet_300_100()) == (784, 300, 100, 10)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    runner = CliRunner()
    text = runner.invoke(app, ["theory", "--widths", "100,100,100", "--trials", "0"]).output
    assert "1,851.0" in text and "shape only" in text
    found = json.loads(runner.invoke(app, ["theory", "--widths", "100,100,100", "--trials", "3", "--json"]).output)
    assert round(found["layers"][0]["sample"]) == 1851 and len(found["tried"]) == 6
    assert "64→300" in runner.invoke(app, ["theory", "digits", "--trials", "0"]).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a recipe or --widths"),
        (["digits", "--widths", "3,3"], "expected a recipe or --widths"),
        (["--widths", "3,x"], "expected numbers such as 784,300,100,10, got '3,x'"),
        (["--widths", "3"], "expected two widths or more"),
        (["--widths", "3,3", "--density", "0.6"], r"expected a density in \(0, 0.5\]"),
        (["--widths", "3,3", "--error", "1.5"], r"expected an error in \(0, 1\)"),
        (["--widths", "3,3", "--constant", "0"], "expected a constant above 0"),
    ],
)
def test_wrong_input(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, ["theory", *arguments], catch_exceptions=False)


def test_other_networks() -> None:
    with pytest.raises(ValueError, match=r"'conv1\.weight' is a convolution"):
        sf.theory.widths_of(sf.models.resnet20())
    with pytest.raises(ValueError, match="one after the other"):
        sf.theory.widths_of(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 6)))
    with pytest.raises(ValueError, match="no solution above 1"):
        bounds._largest(lambda n: math.log2(n) / 4)
