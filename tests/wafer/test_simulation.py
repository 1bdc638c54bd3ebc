"""The closed forms against the event simulation, cycle by cycle, on random layers and grids up to 64 × 64."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparseflow.hardware.wafer.kernel import Kernel
from sparseflow.hardware.wafer.layer import Cycles, Grid, gradient_cycles, pass_cycles
from sparseflow.hardware.wafer.simulate import Simulated, simulate
from sparseflow.hardware.wafer.systems import Sourced

TOLERANCE = 0.05
FMACS = 4


def kernel(overlap: int = 0, rows: int = 8, queue: int = 64) -> Kernel:
    return replace(
        Kernel(), overlap=Sourced(overlap, "a test"), rows=Sourced(rows, "a test"), queue=Sourced(queue, "a test")
    )


def random_counts(rows: int, inputs: int, lines: int, density: float, seed: int) -> NDArray[np.int64]:
    mask = np.random.default_rng(seed).random((rows, inputs)) < density
    line_of = np.arange(inputs) * lines // inputs
    return np.stack([mask[:, line_of == line].sum(1) for line in range(lines)], 1).astype(np.int64)


def closed(counts: NDArray[np.int64], columns: int, tokens: int, one: Kernel, wavelets_per_cycle: float = inf) -> float:
    grid = Grid(counts.shape[1], columns)
    found = pass_cycles(counts.shape[0], counts.sum(0).max(), tokens, grid, FMACS, one)
    return total(found, one, (counts.sum() + counts.shape[0]) / wavelets_per_cycle)


def total(found: Cycles, one: Kernel, io: float) -> float:
    return max(found.axpys + (1 - one.overlap) * found.reduction, found.reduction, io) + found.fill


@settings(max_examples=15, deadline=None)
@given(
    lines=st.sampled_from([1, 3, 8, 16]),
    columns=st.sampled_from([1, 2, 5]),
    held=st.integers(1, 40),
    density=st.sampled_from([1.0, 0.7, 0.5, 0.3, 0.2]),
    overlap=st.sampled_from([0, 1]),
    seed=st.integers(0, 10**6),
)
def test_forward_agrees_on_random_layers(
    lines: int, columns: int, held: int, density: float, overlap: int, seed: int
) -> None:
    counts = random_counts(96, 16 * lines, lines, density, seed)
    one = kernel(overlap)
    found = simulate(counts, columns, held * columns, FMACS, kernel=one)
    assert found.cycles == pytest.approx(closed(counts, columns, held * columns, one), rel=TOLERANCE)


@pytest.mark.parametrize("wavelets_per_cycle", [0.05, 0.2, 0.5])
def test_forward_agrees_where_wafer_io_binds(wavelets_per_cycle: float) -> None:
    counts = random_counts(96, 128, 8, 0.2, 1)
    found = simulate(counts, 4, 64, FMACS, wavelets_per_cycle, kernel())
    bound = closed(counts, 4, 64, kernel(), wavelets_per_cycle)
    assert found.cycles == pytest.approx(bound, rel=TOLERANCE)
    assert bound > 1.2 * closed(counts, 4, 64, kernel())


@settings(max_examples=10, deadline=None)
@given(
    lines=st.sampled_from([2, 8]), columns=st.sampled_from([1, 4, 8]), held=st.integers(1, 40), seed=st.integers(0, 99)
)
def test_wgrad_agrees_on_random_layers(lines: int, columns: int, held: int, seed: int) -> None:
    counts = random_counts(64, 16 * lines, lines, 0.4, seed)
    found = simulate(counts, columns, held * columns, FMACS, kernel=kernel(), gradient=True)
    expected = gradient_cycles(counts.sum(0).max(), held * columns, Grid(lines, columns), FMACS, kernel())
    assert found.cycles == pytest.approx(total(expected, kernel(), 0.0), rel=TOLERANCE)


def test_largest_grid_agrees() -> None:
    counts = random_counts(12, 256, 64, 0.3, 0)
    found = simulate(counts, 64, 64 * 16, FMACS, kernel=kernel())
    assert found.cycles == pytest.approx(closed(counts, 64, 64 * 16, kernel()), rel=TOLERANCE)
    assert found.busy.shape == (64, 64)


def test_a_literal_pass() -> None:
    # One core, one row of two weights, 8 tokens: weights arrive at 0 and 1, each AXPY takes 2 + 8/4 cycles, then the
    # reduction takes 2 + 8.
    found = simulate(np.array([[2]]), 1, 8, FMACS, kernel=kernel())
    assert found.cycles == 4 + 4 + 10 and found.hops == 0
    assert found.busy.tolist() == [[18]] and found.stalled.tolist() == [[0]]
    # Two lines of one weight: the second adds its partial sum once the first word is there, a hop after it was added.
    chained = simulate(np.array([[1, 1]]), 1, 8, FMACS, kernel=kernel())
    assert chained.cycles == 4 + (2 + 1) + 10
    # Two columns of one line: the second works a hop later.
    spread = simulate(np.array([[1]]), 2, 16, FMACS, kernel=kernel())
    assert spread.cycles == 1 + 4 + 10 and spread.hops == 2


def test_work_is_conserved_and_wavelets_are_counted() -> None:
    counts = random_counts(32, 64, 4, 0.3, 2)
    found: Simulated = simulate(counts, 3, 24, FMACS, kernel=kernel())
    assert found.wavelets == counts.sum() + counts.size
    assert found.hops == 2 * found.wavelets
    np.testing.assert_array_equal(found.busy, (4 * counts.sum(0) + 32 * 10)[:, None].repeat(3, 1))
    assert found.stalled.min() >= 0 and found.stalled.max() < found.cycles


def test_uneven_tokens_are_held_by_the_first_columns() -> None:
    found = simulate(np.array([[3]]), 4, 18, 1, kernel=kernel())
    assert (found.busy[0, :2] > found.busy[0, 2:]).all()


def test_two_partial_sum_buffers_are_not_enough_for_the_closed_form() -> None:
    # Lines wait for each other's partial sums where rows are short: the reason why the model supposes eight.
    counts = random_counts(256, 256, 8, 0.1, 0)
    two, eight = (simulate(counts, 2, 64, FMACS, kernel=kernel(1, rows)) for rows in (2, 8))
    assert two.cycles > 1.2 * closed(counts, 2, 64, kernel(1))
    assert eight.cycles == pytest.approx(closed(counts, 2, 64, kernel(1)), rel=TOLERANCE)
    assert two.stalled.sum() > eight.stalled.sum()


def test_impossible_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 64 lines and columns, got 1 × 65"):
        simulate(np.array([[1]]), 65, 65, FMACS)
    with pytest.raises(ValueError, match=r"expected 0 or 1, got 0\.5"):
        simulate(np.array([[1]]), 1, 1, FMACS, kernel=replace(Kernel(), overlap=Sourced(0.5, "a test")))
