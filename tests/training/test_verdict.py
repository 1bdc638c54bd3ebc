import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.training.verdict import Comparison, Verdict, _bootstrap_means, _t_quantile, verdict

CONTROLS = ("dense", "reinit", "shuffle")


def arms_with_accuracy(seed: int, seeds: int = 3, examples: int = 4000, **accuracy: float) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {arm: rng.random((seeds, examples)) < p for arm, p in accuracy.items()}


def test_clear_ticket() -> None:
    said = verdict(arms_with_accuracy(0, ticket=0.92, dense=0.90, reinit=0.87, shuffle=0.86, random=0.80))
    assert said.value == "ticket"
    assert list(said.comparisons) == ["dense", "reinit", "shuffle", "random"]
    assert said.comparisons["reinit"].mean == pytest.approx(5.0, abs=1.5)
    assert f"{said.comparisons['reinit'].low:+.2f}" in said.reason
    assert "these 3 seeds" in said.reason


@pytest.mark.parametrize(
    ("dense", "reinit", "worse_than"), [(0.95, 0.80, "the dense network"), (0.88, 0.94, "fresh weights")]
)
def test_clearly_not_a_ticket(dense: float, reinit: float, worse_than: str) -> None:
    said = verdict(arms_with_accuracy(1, ticket=0.90, dense=dense, reinit=reinit, shuffle=0.80))
    assert said.value == "not a ticket"
    assert worse_than in said.reason


def test_a_difference_within_the_noise_is_undecided() -> None:
    said = verdict(arms_with_accuracy(2, examples=400, ticket=0.90, dense=0.90, reinit=0.895, shuffle=0.5))
    assert said.value == "undecided"
    assert "too small" in said.reason and "fresh weights" in said.reason
    assert "the shuffled mask" not in said.reason


def test_losing_less_than_the_margin_to_dense_is_still_a_ticket() -> None:
    ticket = np.ones((1, 1000))
    ticket[0, 0] = 0.0
    dense, far_below = np.ones((1, 1000)), np.zeros((1, 1000))
    said = verdict({"ticket": ticket, "dense": dense, "reinit": far_below, "shuffle": far_below})
    assert said.comparisons["dense"].mean == pytest.approx(-0.1)
    assert said.comparisons["dense"].high <= 0.0
    # One example of 1,000 comes up up to three times: its interval touches, and does not clear, the margin.
    assert said.value == "undecided"
    longer = {"ticket": np.tile(ticket, 10), "dense": np.tile(dense, 10)}
    longer |= {"reinit": np.zeros((1, 10_000)), "shuffle": np.zeros((1, 10_000))}
    assert verdict(longer).value == "ticket"


@pytest.mark.parametrize("missing", CONTROLS)
def test_without_a_deciding_arm_it_is_never_a_ticket(missing: str) -> None:
    arms = arms_with_accuracy(3, ticket=0.95, dense=0.90, reinit=0.85, shuffle=0.85)
    del arms[missing]
    said = verdict(arms)
    assert said.value == "undecided"
    assert "not compared" in said.reason


def test_without_controls_worse_than_dense_is_still_not_a_ticket() -> None:
    assert verdict(arms_with_accuracy(4, ticket=0.80, dense=0.90)).value == "not a ticket"


def test_random_does_not_decide() -> None:
    arms = arms_with_accuracy(5, ticket=0.92, dense=0.90, reinit=0.87, shuffle=0.86)
    without = verdict(arms)
    with_random = verdict(arms | arms_with_accuracy(6, random=0.99))
    assert with_random.value == without.value == "ticket"
    assert with_random.comparisons["random"].high < 0
    # Nor does one arm more move the interval of another.
    assert with_random.comparisons["shuffle"] == without.comparisons["shuffle"]


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_pure_noise_is_called_a_ticket_at_most_one_time_in_twenty(shared: float) -> None:
    """1,000 draws of arms with equal expectation; `shared`: the part of the examples where all arms agree."""
    rng = np.random.default_rng(7)
    draws, examples = 1000, 300
    tickets = 0
    for _ in range(draws):
        easy = rng.random(examples) < shared
        tickets += (
            verdict(
                {arm: easy | (rng.random((1, examples)) < 0.5) for arm in ("ticket", *CONTROLS)},
                resamples=200,
            ).value
            == "ticket"
        )
    assert tickets <= 0.05 * draws


def test_noise_beats_one_control_at_the_stated_rate() -> None:
    """The interval's lower end lies above zero in 2.5 % of draws of noise, its upper end below in as many."""
    rng = np.random.default_rng(8)
    draws = 1000
    comparisons = [
        verdict(dict(zip(("ticket", "reinit"), rng.random((2, 2, 200)))), resamples=200).comparisons["reinit"]
        for _ in range(draws)
    ]
    above = sum(c.low > 0 for c in comparisons) / draws
    below = sum(c.high < 0 for c in comparisons) / draws
    # 2.5 % ± 3 binomial standard deviations, and half a point for 200 resamples.
    assert 0.01 <= above <= 0.045
    assert 0.01 <= below <= 0.045


def test_the_interval_covers_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(9)
    draws, examples, seeds = 600, 400, 2
    covered = 0
    for _ in range(draws):
        said = verdict(
            {"ticket": rng.random((seeds, examples)) < 0.9, "reinit": rng.random((seeds, examples)) < 0.85},
            resamples=400,
        ).comparisons["reinit"]
        covered += said.low <= 5.0 <= said.high
    assert 0.92 <= covered / draws <= 0.975


def test_both_ways_to_resample_agree_in_distribution() -> None:
    rng = np.random.default_rng(10)
    few_values = rng.choice([-100.0, 0.0, 50.0], size=500, p=[0.1, 0.7, 0.2])
    # Too little to change a mean, enough to make each value distinct and so take the other way.
    all_distinct = few_values + np.linspace(0.0, 5e-10, 500)
    by_value = _bootstrap_means(few_values, 20_000, rng)
    by_index = _bootstrap_means(all_distinct, 20_000, rng)
    probabilities = np.linspace(0.01, 0.99, 25)
    spread = few_values.std() / 500**0.5
    assert by_value.std() == pytest.approx(spread, rel=0.02)
    gap = np.quantile(by_value, probabilities) - np.quantile(by_index, probabilities)
    assert np.abs(gap).max() < 0.1 * spread


def test_the_bootstrap_fills_each_mean_when_chunks_do_not_divide() -> None:
    points = np.arange(300_000, dtype=np.float64)
    means = _bootstrap_means(points, 7, np.random.default_rng(11))
    assert np.abs(means - points.mean()).max() < 6 * points.std() / points.size**0.5


def test_t_interval_appears_from_five_seeds_and_is_over_seeds() -> None:
    gains = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    ticket = np.repeat(gains[:, None], 50, axis=1)
    over_five = verdict({"ticket": ticket, "reinit": np.zeros((5, 50))}).comparisons["reinit"]
    # Mean 30, standard deviation 15.811, over √5, times 2.776.
    assert over_five.t_low == pytest.approx(30 - 19.63, abs=0.02)
    assert over_five.t_high == pytest.approx(30 + 19.63, abs=0.02)
    # Every example shows the same mean over seeds: nothing is uncertain about these seeds.
    assert over_five.low == pytest.approx(30.0) and over_five.high == pytest.approx(30.0)
    over_four = verdict({"ticket": ticket[:4], "reinit": np.zeros((4, 50))}).comparisons["reinit"]
    assert over_four.t_low is None and over_four.t_high is None


@pytest.mark.parametrize(
    ("dof", "quantile"), [(4, 2.776), (5, 2.571), (9, 2.262), (19, 2.093), (30, 2.042), (120, 1.980)]
)
def test_t_quantile_matches_the_printed_tables(dof: int, quantile: float) -> None:
    assert _t_quantile(dof) == pytest.approx(quantile, abs=0.001)


def test_one_seed_works() -> None:
    said = verdict(arms_with_accuracy(12, seeds=1, ticket=0.95, dense=0.90, reinit=0.85, shuffle=0.85))
    assert said.value == "ticket"
    assert said.comparisons["dense"].seeds == 1
    assert "this one seed" in said.reason


def test_the_ticket_alone_is_undecided() -> None:
    said = verdict({"ticket": np.ones((2, 3))})
    assert (said.value, said.comparisons) == ("undecided", {})


@settings(max_examples=15, deadline=None)
@given(seeds=st.integers(1, 6), examples=st.integers(1, 40), seed=st.integers(0, 99), distinct=st.booleans())
def test_swapping_the_arms_mirrors_the_mean(seeds: int, examples: int, seed: int, distinct: bool) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, seeds, examples)) if distinct else rng.integers(0, 2, (2, seeds, examples))
    ahead = verdict({"ticket": a, "dense": b}, resamples=100).comparisons["dense"]
    behind = verdict({"ticket": b, "dense": a}, resamples=100).comparisons["dense"]
    assert ahead.mean == pytest.approx(-behind.mean)
    assert ahead.low <= ahead.high
    assert (ahead.seeds, ahead.examples) == (seeds, examples)


def test_the_same_call_says_the_same() -> None:
    arms = arms_with_accuracy(13, ticket=0.9, dense=0.9)
    assert verdict(arms) == verdict(arms)
    assert verdict(arms) != verdict(arms, seed=1)


def test_json_and_text() -> None:
    said = verdict(arms_with_accuracy(14, seeds=5, ticket=0.95, dense=0.9, reinit=0.8, shuffle=0.8))
    back = json.loads(json.dumps(said.to_json()))
    assert {"value", "comparisons", "reason"} == set(back)
    assert Comparison(**back["comparisons"]["dense"]) == said.comparisons["dense"]
    restored = {arm: Comparison(**numbers) for arm, numbers in back["comparisons"].items()}
    assert Verdict(back["value"], restored, back["reason"]) == said
    assert str(said).startswith("ticket: ")


@pytest.mark.parametrize(
    ("arms", "resamples", "said"),
    [
        ({"dense": np.ones((1, 2))}, 100, "expected the scores of the arm 'ticket'"),
        ({"ticket": np.ones((1, 2)), "reinnit": np.ones((1, 2))}, 100, "no arm named 'reinnit'; choose from"),
        ({"ticket": np.ones((2, 9)), "dense": np.ones((3, 9))}, 100, "paired by seed and example"),
        ({"ticket": np.ones((2, 9)), "dense": np.ones((2, 8))}, 100, "paired by seed and example"),
        ({"ticket": np.ones(9)}, 100, "for one seed pass"),
        ({"ticket": np.ones((2, 0))}, 100, "must have shape"),
        ({"ticket": np.full((1, 4), 88.0)}, 100, r"accuracies in \[0, 1\]"),
        ({"ticket": np.full((1, 4), np.nan)}, 100, "NaN"),
        ({"ticket": np.ones((1, 4))}, 5, "resamples >= 100"),
    ],
)
def test_mistakes_are_explained(arms: dict[str, Any], resamples: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        verdict(arms, resamples=resamples)
