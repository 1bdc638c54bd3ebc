"""What the GPU bench checks before it times anything, how it takes turns, and what is never timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from made_up_gpu import SIZE, Gpu
from torch import Tensor

from sparseflow.bench.gpu import clock, point
from sparseflow.bench.gpu.clock import Timing, copies_beyond
from sparseflow.bench.gpu.point import Absent, Point, Ready, Side, measure
from sparseflow.bench.gpu.problem import judge, poisoned, problem
from sparseflow.bench.gpu.products import GATHER, our_side
from sparseflow.bench.gpu.promises import promises
from sparseflow.bench.gpu.setting import Setting, Shape, tiny
from sparseflow.hardware.backends import triton_parts


@pytest.fixture
def setting() -> Setting:
    return tiny(seed=3)


def test_inputs_in_turn_are_larger_than_twice_the_cache() -> None:
    assert copies_beyond(cache=50, nbytes=64) == 2
    assert copies_beyond(cache=50, nbytes=9) == 12
    assert copies_beyond(cache=0, nbytes=0) == 2


@pytest.mark.parametrize("broken", ["", "operation not permitted when stream is capturing\nmore"])
def test_sides_take_turns_on_inputs_in_turn(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    gpu = Gpu(monkeypatch, broken)
    calls: list[tuple[str, int]] = []

    def side(name: str, milliseconds: float) -> Callable[[int], object]:
        def launch(number: int) -> None:
            calls.append((name, number))
            gpu.now += milliseconds

        return launch

    times = clock.take_turns({"a": side("a", 0.5), "b": side("b", 4.0)}, copies=3, repeats=2)
    # Two milliseconds a sample: four launches of a, rounded up to whole rounds of three inputs.
    assert calls[-18:] == [*zip("a" * 6, [0, 1, 2] * 2), *zip("b" * 3, [0, 1, 2])] * 2
    assert times["a"].samples == pytest.approx((0.5e-3,) * 2) and times["b"].seconds == pytest.approx(4e-3)
    said = "events, not captured: operation not permitted when stream is capturing" if broken else "graph"
    assert {timing.by for timing in times.values()} == {said}


def test_one_wrong_row_among_thousands_is_found() -> None:
    expected = torch.randn(4096, 8, dtype=torch.float64)
    got = expected.to(torch.bfloat16)
    assert judge(got, expected)[0] == "ok"
    got[1234] *= 1.1
    assert judge(got, expected)[0].startswith("row 1234: relative error")
    got[77, 3] = math.nan
    assert judge(got, expected)[0].startswith("row 77: relative error nan")
    assert judge(got[:5], expected)[0] == "expected shape (4096, 8), got (5, 8)"


def test_memory_is_poisoned_while_a_result_is_made() -> None:
    torch.use_deterministic_algorithms(False)
    with poisoned():
        assert torch.empty(1000).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    with poisoned():
        pass
    assert torch.are_deterministic_algorithms_enabled()


def test_a_problem_has_new_numbers_each_time_and_one_weight_at_least(setting: Setting) -> None:
    one, other = (problem(setting, Shape(5, 7, 3), torch.float32, 1e-9) for _ in range(2))
    assert int(one.mask.sum()) == 1 and one.copies == 2
    assert not torch.equal(one.xs[0], one.xs[1]) and not torch.equal(one.xs[0], other.xs[0])


def test_what_is_wrong_absent_or_broken_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[set[str]] = []

    def take_turns(sides: dict[str, Any], copies: int) -> dict[str, Timing]:
        timed.append(set(sides))
        return {name: Timing((1.0, 2.0, 3.0), "graph") for name in sides}

    monkeypatch.setattr(point, "take_turns", take_turns)
    blank = Point("kernels", "gather", "forward", "fp32", 0.1, SIZE)

    def absent() -> Ready:
        raise Absent("not on this chip")

    def broken() -> Ready:
        raise MemoryError("no\nmemory")

    right = Ready(lambda number: None, lambda: ("ok", 1e-7), "tokens=32")
    wrong = Ready(lambda number: None, lambda: ("row 1 is off", 0.5))
    sides = [Side(blank, prepare) for prepare in (lambda: right, lambda: wrong, absent, broken)]
    found = measure(sides, copies=2, timed=True)
    assert timed == [{"0"}]
    assert [one.check for one in found] == ["ok", "row 1 is off", "ok", "MemoryError: no"]
    assert found[0].time == 2.0 and found[0].config == "tokens=32"
    assert all(one.seconds == () and one.time is None for one in found[1:])
    assert "WRONG RESULT: row 1 is off" in str(found[1]) and "not there: not on this chip" in str(found[2])
    with pytest.raises(AssertionError, match="no time"):
        Point("kernels", "gather", "forward", "fp32", 0.1, SIZE, check="off", seconds=(1.0,))


def _off_by_one_percent(y: Tensor) -> Tensor:
    return y * 1.01


def _last_row_not_written(y: Tensor) -> Tensor:
    short = torch.empty_like(y)
    short[:-1] = y[:-1]
    return short


@pytest.mark.parametrize("spoil", [_off_by_one_percent, _last_row_not_written])
def test_a_wrong_kernel_shows_no_time_and_no_ratio(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Tensor]
) -> None:
    right = triton_parts.spmm
    monkeypatch.setattr(triton_parts, "spmm", lambda *args, **options: spoil(right(*args, **options)))
    monkeypatch.setattr(
        point, "take_turns", lambda sides, copies: {name: Timing((1.0,) * 9, "graph") for name in sides}
    )
    task = problem(setting, setting.shape, torch.float32, 0.1)
    found = measure([our_side("torch-sparse", task, "forward", GATHER, setting.tuner)], task.copies, timed=True)
    csr = Point("torch-sparse", "torch CSR", "forward", "fp32", 0.1, SIZE, seconds=(8.0,) * 9)
    figures = [figure for figure in promises([csr, *found], timed=True) if not figure.absent]
    assert found[0].seconds == () and found[0].check.startswith("row ")
    assert [figure.verdict for figure in figures] == ["wrong result", "wrong result"]
    assert all(figure.samples == () and "WRONG RESULT: row " in str(figure) for figure in figures)
