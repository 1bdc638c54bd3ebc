"""The GPU bench, where there is no GPU: what it checks, what it refuses to time, and what it makes of times."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparseflow.bench.gpu import clock, point, run, step
from sparseflow.bench.gpu.clock import Timing, copies_beyond
from sparseflow.bench.gpu.machine import describe_gpu, machine_text
from sparseflow.bench.gpu.point import Absent, Point, Ready, Side, measure
from sparseflow.bench.gpu.problem import judge, poisoned, problem
from sparseflow.bench.gpu.products import GATHER, kernels, our_side
from sparseflow.bench.gpu.promises import promises
from sparseflow.bench.gpu.setting import Setting, Shape, tiny
from sparseflow.cli import main
from sparseflow.hardware.backends import Cost, triton_parts

SIZE = (4096, 4096, 8192)


@pytest.fixture
def setting() -> Setting:
    return tiny(seed=3)


class Gpu:
    """In place of a GPU: launches take a millisecond each, and `broken` is what capturing them raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: str = "") -> None:
        self.now, self.broken = 0.0, broken
        monkeypatch.setattr(clock, "_milliseconds", self.milliseconds)
        monkeypatch.setattr(clock, "capture", self.capture)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def milliseconds(self, run: Callable[[], object]) -> float:
        before = self.now
        run()
        return self.now - before

    def capture(self, run: Callable[[], object]) -> Callable[[], object]:
        if self.broken:
            raise RuntimeError(self.broken)
        return run


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


def timed_point(section: str, side: str, seconds: float, density: float = 0.1, **more: Any) -> Point:
    values = {"product": "step", "dtype": "fp32", "shape": SIZE, "seconds": (seconds,) * 9, **more}
    return Point(section=section, side=side, density=density, **values)


def test_a_step_is_held_against_the_better_dense_backend() -> None:
    points = [
        timed_point("step", "dense", 3.0),
        timed_point("step", "dense-compact", 2.0),
        timed_point("step", "triton", 1.0),
        timed_point("step", "triton alone", 0.1),
        timed_point("step", "dense", 1.0, dtype="bf16"),
        timed_point("step", "triton", 2.0, dtype="bf16"),
        timed_point("step", "planned", 1.0, dtype="bf16"),
    ]
    fp32, bf16 = (figure for figure in promises(points, timed=True) if figure.samples)
    assert (fp32.name, fp32.limit, fp32.aim) == ("fp32 step at 90 % sparse: dense / ours", 1.5, 2.5)
    assert fp32.quartiles == (2, 2, 2) and fp32.verdict == "met"
    # Where nothing but "never slower" is promised, it is what a plan chooses that counts.
    assert bf16.limit == 0.98 and bf16.quartiles == (1, 1, 1) and bf16.verdict == "met"


def test_the_other_promises() -> None:
    points = [
        timed_point("torch-sparse", "torch CSR", 3.0, product="forward"),
        timed_point("torch-sparse", "gather", 1.0, product="forward"),
        timed_point("packing", "triton gather", 0.015, product="pack"),
        timed_point("packing", "triton", 0.02, product="refresh"),
        timed_point("step", "triton", 1.0),
    ]
    csr, pack, refresh = (figure for figure in promises(points, timed=True) if figure.samples)
    assert (csr.limit, csr.quartiles[1], csr.verdict) == (4, 3, "missed")
    assert (pack.limit, pack.unit, pack.quartiles[1], pack.verdict) == (20, "ms", 15, "met")
    assert (refresh.limit, refresh.at_least, refresh.quartiles[1], refresh.verdict) == (0.05, False, 0.02, "met")


def test_a_wrong_library_breaks_no_promise_of_ours() -> None:
    csr = Point("torch-sparse", "torch CSR", "forward", "fp32", 0.1, SIZE, check="row 3 is off")
    figures = promises([csr, timed_point("torch-sparse", "gather", 1.0, product="forward")], timed=True)
    (figure,) = (figure for figure in figures if "CSR" in figure.name)
    assert figure.verdict == "not measured" and "torch CSR is wrong here: row 3 is off" in str(figure)


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[Setting], Iterator[Point]]]:
    found: dict[str, Callable[[Setting], Iterator[Point]]] = {}
    monkeypatch.setattr(run, "SECTIONS", found)
    return found


def add(sections: dict[str, Any], name: str, measure: Callable[[Setting], Iterator[Point]]) -> None:
    sections[name] = (name.upper(), measure)


def test_sections_that_no_longer_fit_are_skipped(sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(run.time, "monotonic", lambda: now)

    def minute(setting: Setting) -> Iterator[Point]:
        nonlocal now
        for _ in range(3):
            now += 60
            yield timed_point("kernels", "torch CSR", 1.0)

    for name in ("one", "two", "three"):
        add(sections, name, minute)
    saved: list[int] = []
    found = run.run_gpu_bench(save=lambda data: saved.append(len(data["points"])), minutes=5)
    # After each section, and at the end with the rest of the text.
    assert saved == [3, 5, 5, 5]
    assert found["skipped"] == ["the rest of two", "three"]
    assert "skipped, for want of time: the rest of two, three" in found["text"]
    assert json.loads(json.dumps(found))["minutes"] == 5


def test_a_section_that_fails_breaks_a_promise_and_stops_no_other(sections: dict[str, Any]) -> None:
    def fails(setting: Setting) -> Iterator[Point]:
        yield timed_point("kernels", "torch CSR", 1.0)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def goes_on(setting: Setting) -> Iterator[Point]:
        yield timed_point("kernels", "torch CSR", 1.0)

    add(sections, "one", fails)
    add(sections, "two", goes_on)
    found = run.run_gpu_bench()
    assert len(found["points"]) == 2 and "illegal memory access" in found["failed"]["one"]
    assert [figure["name"] for figure in found["figures"] if figure["missed"]] == ["section one"]


def test_all_that_is_timed_on_a_gpu_is_right_in_the_interpreter(tmp_path: Path) -> None:
    shown: list[str] = []
    found = run.run_gpu_bench(show=shown.append)
    ours = [one for one in found["points"] if one["side"] in ("compact", "gather", "panel", "triton", "triton alone")]
    assert {one["section"] for one in ours} == {"torch-sparse", "kernels", "kernels-wide", "step", "packing"}
    assert {(one["check"], one["absent"]) for one in ours} == {("ok", "")}
    assert {one["dtype"] for one in ours} == {"fp32", "bf16", "fp16"}
    assert not any(one["seconds"] for one in found["points"])
    assert {figure["verdict"] for figure in found["figures"]} == {"not measured"}
    text = "\n".join(shown)
    assert text == found["text"] and "Modelled for H100 SXM, 4096×4096, 8192 tokens" in text
    # No time of anything: what has a unit of time, or is a multiple of dense, is called modelled.
    assert "µs" not in text and all("modelled" in line for line in text.splitlines() if "times dense" in line)


class Timed(Setting):
    """Small layers, as if times meant something."""

    @property
    def timed(self) -> bool:
        return True


def test_times_become_ratios_and_a_fitted_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Gpu(monkeypatch)
    # Whatever is launched takes a millisecond, and a replay launches nothing.
    monkeypatch.setattr(clock, "_milliseconds", lambda run: [run(), 1.0][1])
    monkeypatch.setattr(clock, "capture", lambda run: lambda: None)
    small = tiny(seed=4)
    values = {field.name: getattr(small, field.name) for field in dataclasses.fields(small)}
    sizes = {"shape": Shape(64, 64, 16), "dtypes": (torch.float32, torch.bfloat16)}
    monkeypatch.setattr(run, "tiny", lambda seed: Timed(**{**values, **sizes}))
    cost = Cost(1.0, 1.0, 1.0, 1.0, 1, True)
    costs = {"dense": cost, "dense-compact": dataclasses.replace(cost, forward=0.5), "triton": cost}
    monkeypatch.setattr(step, "measure_candidates", lambda candidates, work: {name: costs[name] for name in candidates})
    monkeypatch.setenv("SPARSEFLOW_CACHE_DIR", str(tmp_path))
    found = run.run_gpu_bench(only=["step", "packing", "kernels"])
    assert not found["failed"]
    assert all(len(one["seconds"]) == 9 for one in found["points"])
    assert {one["config"] for one in found["points"] if one["side"] == "planned"} == {"dense-compact"}
    figures = {figure["name"]: figure["quartiles"] for figure in found["figures"] if figure["samples"]}
    assert figures["fp32 step at 90 % sparse: dense / ours"] == (1.0, 1.0, 1.0)
    assert {"packing a new mask at 90 % sparse, gather", "bf16 refresh at 90 % sparse, of a step"} <= figures.keys()
    assert {one["name"] for one in found["fits"]} >= {"eta_gather_fp32", "eta_gather_wgrad_bf16", "eta_dense_fp32"}
    assert found["model"]["eta"].keys() == {one["name"] for one in found["fits"]}
    (kept,) = tmp_path.glob("chip-*.json")
    assert json.loads(kept.read_text()) == found["model"]


def test_kernels_are_measured_beside_dense_product_by_product(setting: Setting) -> None:
    found = list(kernels(setting))
    places = {side: [(one.product, one.dtype) for one in found if one.side == side] for side in ("dense", "gather")}
    assert places["dense"] == places["gather"] and len(places["dense"]) == 3 * 3 * len(setting.densities)
    # Tensor cores have no float32, and panels come in two heights.
    panels = {(one.dtype, one.config.partition("[")[0]) for one in found if one.side == "panel"}
    assert panels == {(dtype, panel) for dtype in ("bf16", "fp16") for panel in ("panel64", "panel128")}


def test_a_problem_has_new_numbers_each_time_and_one_weight_at_least(setting: Setting) -> None:
    one, other = (problem(setting, Shape(5, 7, 3), torch.float32, 1e-9) for _ in range(2))
    assert int(one.mask.sum()) == 1 and one.copies == 2
    assert not torch.equal(one.xs[0], one.xs[1]) and not torch.equal(one.xs[0], other.xs[0])


def test_the_machine_is_described_without_a_gpu() -> None:
    found = describe_gpu(torch.device("cpu"))
    assert found["gpu"] is None and {"triton", "cuda", "hip", "torch", "python"} <= found.keys()
    assert machine_text(found).startswith("no GPU: results are checked in Triton's interpreter, nothing is timed")


def test_without_a_gpu_the_command_says_in_one_line_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr("sys.argv", ["sparseflow", "bench", "--backend", "triton"])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert "needs an NVIDIA or AMD GPU" in error and "TRITON_INTERPRET=1" in error


def test_the_command_writes_json_into_a_file_and_prints_text(
    sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add(sections, "one", lambda setting: iter([timed_point("kernels", "torch CSR", 1.0)]))
    target = tmp_path / "gpu.json"
    monkeypatch.setattr("sys.argv", ["sparseflow", "bench", "--backend", "triton", "--json", str(target)])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr().out
    assert stopped.value.code == 0
    assert json.loads(target.read_text())["text"].strip() == printed.strip()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "tritn"], "no bench of a backend 'tritn'; choose from: cpu, stream, triton"),
        (["--backend", "triton", "file.json"], "expected --json before 'file.json'"),
        (["--backend", "triton", "--only", "dnse"], "no section 'dnse' in the bench; choose from: dense, 2:4"),
    ],
)
def test_wrong_arguments_are_refused_with_the_choices(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["sparseflow", "bench", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and said in capsys.readouterr().err
