import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow.masks import Constant, Cubic, schedules

densities = st.floats(0.001, 1.0)
progresses = st.floats(0.0, 1.0)


def test_constant_is_a_constant_rate_per_round() -> None:
    schedule = Constant(0.8**10)
    assert [schedule(r / 10) for r in range(11)] == pytest.approx([0.8**r for r in range(11)])


def test_cubic_is_equation_1() -> None:
    # s_i = 0.5, s_f = 0.9, halfway: s = 0.9 + (0.5 - 0.9) / 8 = 0.85
    assert Cubic(0.1, 0.5)(0.5) == pytest.approx(0.15)
    assert Cubic(0.1)(0.5) == pytest.approx(0.1 + 0.9 / 8)


@given(st.sampled_from(["constant", "cubic"]), densities, densities, progresses, progresses)
def test_density_falls_from_the_initial_to_the_final_one(
    name: str, one: float, other: float, early: float, late: float
) -> None:
    final, initial = sorted((one, other))
    early, late = sorted((early, late))
    schedule = schedules.get(name)(final, initial)
    assert math.isclose(schedule(0.0), initial)
    assert math.isclose(schedule(1.0), final)
    assert schedule(early) >= schedule(late) * (1 - 1e-12)


@pytest.mark.parametrize("final, initial", [(0.0, 1.0), (-1.0, 1.0), (0.5, 0.4), (0.5, 1.5), (math.nan, 1.0)])
def test_densities_out_of_range_are_refused(final: float, initial: float) -> None:
    for schedule in (Constant, Cubic):
        with pytest.raises(ValueError, match="0 < final_density <= initial_density <= 1, got final_density="):
            schedule(final, initial)


@pytest.mark.parametrize("progress", [-0.1, 1.1, math.nan])
def test_progress_out_of_range_is_refused(progress: float) -> None:
    for schedule in (Constant(0.1), Cubic(0.1)):
        with pytest.raises(ValueError, match=r"progress: expected a fraction in \[0, 1\], got"):
            schedule(progress)


def test_get_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="no schedule 'cubik'; available: constant, cubic; did you mean 'cubic'"):
        schedules.get("cubik")
