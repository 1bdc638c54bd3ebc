"""The GPU bench as a whole, where there is no GPU: its sections, its budget of time, and its command."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_gpu import Gpu, timed_point

from sparseflow.bench.gpu import clock, run, step
from sparseflow.bench.gpu.machine import describe_gpu, machine_text
from sparseflow.bench.gpu.point import Point
from sparseflow.bench.gpu.products import kernels
from sparseflow.bench.gpu.setting import Setting, Shape, tiny
from sparseflow.cli import main
from sparseflow.hardware.backends import Cost


@pytest.fixture
def setting() -> Setting:
    return tiny(seed=3)


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


def test_the_machine_is_described_without_a_gpu() -> None:
    found = describe_gpu(torch.device("cpu"))
    assert found["gpu"] is None and {"triton", "cuda", "hip", "torch", "python"} <= found.keys()
    assert machine_text(found).startswith("no GPU: results are checked in Triton's interpreter, nothing is timed")


def test_without_a_gpu_the_command_says_in_one_line_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
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
