"""The closed forms of one layer: what sparsity gives back, what it does not, and where I/O takes over."""

import itertools
from dataclasses import replace
from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.hardware.wafer.imbalance import expected_imbalance, imbalance, line_weights
from sparseflow.hardware.wafer.kernel import Kernel
from sparseflow.hardware.wafer.layer import PASSES, Grid, Layer, Pass, Wafer, reduction_share, run_pass, stream_bytes
from sparseflow.hardware.wafer.mapping import grids, saturation_tokens
from sparseflow.hardware.wafer.systems import CS2

WAFER = Wafer(CS2)
MATRIX = Layer("matrix", 12_288, 12_288)
TOKENS = 122_880
GRID = WAFER.grid(256)


def seconds(layer: Layer, grid: Grid = GRID, tokens: int = TOKENS) -> float:
    return sum(run_pass(layer, name, tokens, grid, WAFER).seconds for name in PASSES)


@settings(max_examples=30, deadline=None)
@given(
    densities=st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=6),
    lines=st.integers(1, 863),
    tokens=st.integers(1, 300_000),
)
def test_speed_up_grows_with_sparsity_and_never_beyond_one_over_density(
    densities: list[float], lines: int, tokens: int
) -> None:
    dense = seconds(MATRIX, WAFER.grid(lines), tokens)
    found = [(density, dense / seconds(MATRIX.at(density), WAFER.grid(lines), tokens)) for density in sorted(densities)]
    for (_, faster), (_, slower) in itertools.pairwise(found):
        assert faster >= slower * (1 - 1e-9)
    assert all(1 - 1e-9 <= speedup <= (1 + 1e-9) / density for density, speedup in found)


@pytest.mark.parametrize(("lines", "share"), [(128, 0.040), (256, 0.077), (512, 0.143)])
def test_speed_up_of_forward_approaches_one_over_the_reductions_share(lines: int, share: float) -> None:
    # The shares of a 12k × 12k layer as t goes to infinity: 1 / (1 + (I / lines) · adds / fmacs).
    grid = WAFER.grid(lines)
    tokens = 40_000 * grid.columns
    f = reduction_share(MATRIX, tokens, grid, WAFER)
    assert f == pytest.approx(share, abs=1e-3)
    wide = replace(WAFER, system=replace(CS2, io_bits=type(CS2.io_bits)(1e18, "a test without I/O")))
    forward = [run_pass(MATRIX.at(density), "forward", tokens, grid, wide) for density in (1.0, 1e-5)]
    assert forward[0].on_wafer / forward[1].on_wafer == pytest.approx(1 / f, rel=0.02)


def test_reduction_that_is_overlapped_still_takes_its_own_time() -> None:
    hidden = replace(WAFER, kernel=replace(Kernel(), overlap=type(Kernel().overlap)(1, "a test")))
    shown, gone = (run_pass(MATRIX, "forward", TOKENS, GRID, wafer) for wafer in (WAFER, hidden))
    assert gone.on_wafer == gone.compute < shown.on_wafer == shown.compute + shown.reduction
    sparse = run_pass(MATRIX.at(1e-3), "forward", TOKENS, GRID, hidden)
    assert sparse.on_wafer == sparse.reduction > sparse.compute and sparse.limit == "reduction"


def test_checkerboard_is_balanced_and_a_skewed_mask_is_not() -> None:
    rows, columns = torch.arange(64)[:, None], torch.arange(128)
    checkerboard = (rows + columns) % 2 == 0
    assert imbalance(checkerboard, 16) == 1.0
    skewed = (columns < 32).expand(64, 128) & checkerboard
    # All weights on a quarter of the lines.
    assert imbalance(skewed, 16) == 4.0
    assert line_weights(skewed, 16).sum() == skewed.sum()
    layer = Layer("layer", 64, 128, density=float(skewed.float().mean()))
    even, uneven = (replace(layer, imbalance=value) for value in (1.0, imbalance(skewed, 16)))
    first, second = (run_pass(one, "forward", 4096, Grid(16, 16), WAFER) for one in (even, uneven))
    assert second.compute == pytest.approx(4 * first.compute) and second.seconds > first.seconds


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("lines", [2, 8, 64])
def test_expected_imbalance_is_that_of_random_masks(density: float, lines: int) -> None:
    generator = torch.Generator().manual_seed(0)
    found = [imbalance(torch.rand(64, 512, generator=generator) < density, lines) for _ in range(20)]
    excess = sum(found) / len(found) - 1
    assert expected_imbalance(64 * 512 * density, density, 512, lines) - 1 == pytest.approx(excess, rel=0.25)
    assert expected_imbalance(64 * 512, 1.0, 512, lines) == 1.0
    # No line has more than all of its weights.
    assert expected_imbalance(64 * 512 * 0.9999, 0.9999, 512, lines) <= 1 / 0.9999 + 1e-9
    # 3 features on the busiest of 512 / 200 on the mean one.
    assert expected_imbalance(64 * 512, 1.0, 512, 200) == pytest.approx(3 * 200 / 512)


def test_below_saturation_io_binds_and_above_it_does_not() -> None:
    layer, grid = Layer("layer", 4096, 4096, density=0.5), WAFER.grid(512)
    kernel = WAFER.kernel
    flags: dict[int, Pass] = {t: run_pass(layer, "wgrad", t * grid.columns, grid, WAFER) for t in range(1, 200)}
    crossing = min(t for t, one in flags.items() if one.limit != "wafer I/O")
    assert all((one.limit == "wafer I/O") == (t < crossing) for t, one in flags.items())
    # wgrad takes nnz / lines · (task + t / fmacs) cycles, its gradients nnz · 32 bits over the ports.
    ratio = float(kernel.gradient_bits) / CS2.io_bits * CS2.clock * grid.lines
    spread = expected_imbalance(layer.nnz, 0.5, 4096, grid.lines)
    predicted = (ratio / spread - kernel.task_cycles) * CS2.fmacs
    assert crossing == pytest.approx(predicted, rel=0.05)
    found = saturation_tokens(layer, WAFER, [grid])
    assert ceil(found / grid.columns) == crossing


def test_saturation_in_the_best_mapping_is_the_break_even_of_rates() -> None:
    # T = bits · rate / (2 · I/O), the rate being what the cores reach at that T: gradients have 32 bits.
    layer, slow = Layer("layer", 8192, 8192), replace(WAFER, utilisation=0.3)
    tokens = saturation_tokens(layer, slow)

    def break_even(held: int) -> float:
        passes = [run_pass(layer, "wgrad", held, grid, slow) for grid in grids([layer], slow)]
        rate = max(2 * layer.weights * held / one.on_wafer for one in passes)
        return 32 * rate / (2 * CS2.io_bits)

    assert tokens - 1 < break_even(tokens - 1) and break_even(tokens) <= tokens


def test_the_wire_carries_what_is_less_of_rows_and_dense() -> None:
    kernel = Kernel()
    layer = Layer("layer", 100, 1000)
    assert stream_bytes(layer, kernel) == 2 * 100_000
    assert stream_bytes(layer.at(0.5), kernel) == 2 * 100_000
    assert stream_bytes(layer.at(0.1), kernel) == 4 * 10_000 + 4 * 100
    assert stream_bytes(layer.at(0.1), kernel, transposed=True) == 4 * 10_000 + 4 * 1000


@pytest.mark.parametrize(("density", "every", "overhead"), [(0.25, 100, 0.03), (0.1, 10, 0.9)])
def test_dense_gradients_leave_on_update_steps_only(density: float, every: int, overhead: float) -> None:
    layer = Layer("layer", 1000, 2000, density)
    usual, update = (run_pass(layer, "wgrad", TOKENS, GRID, WAFER, dense) for dense in (False, True))
    assert update.bytes_out == 4 * 1000 * 2000 and usual.bytes_out == density * update.bytes_out
    mean = ((every - 1) * usual.bytes_out + update.bytes_out) / every
    assert mean / usual.bytes_out - 1 == pytest.approx(overhead)
    for name in ("forward", "dgrad"):
        assert run_pass(layer, name, TOKENS, GRID, WAFER, True) == run_pass(layer, name, TOKENS, GRID, WAFER)


@pytest.mark.parametrize(("change", "message"), [({"density": 0.0}, "density"), ({"inputs": 0}, "1 or more")])
def test_impossible_layers_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MATRIX, **change)
