import pytest

from sparseflow.training.schedules import constant, cosine, multistep


def test_constant() -> None:
    assert [constant()(step) for step in (0, 1, 10**9)] == [1.0, 1.0, 1.0]


def test_cosine_warms_up_and_falls_to_its_end() -> None:
    schedule = cosine(steps=8, warmup=4, final=0.2)
    assert [schedule(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule(4) == 1.0
    assert schedule(6) == pytest.approx(0.6)
    assert schedule(8) == schedule(100) == pytest.approx(0.2)


def test_multistep_drops_at_its_milestones() -> None:
    schedule = multistep([3, 5], drop=0.5, warmup=2)
    assert [schedule(step) for step in range(7)] == [0.5, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
