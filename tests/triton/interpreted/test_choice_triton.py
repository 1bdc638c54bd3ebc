"""Which kernel each product gets: by a model of the chip, by measurement, and what a plan says about it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.hardware import cache
from sparseflow.hardware.backends import triton_measure, triton_tokens
from sparseflow.hardware.backends.triton import Triton
from sparseflow.hardware.backends.triton_chips import CHIPS, H100, INTERPRETER, chip_of, fit_path
from sparseflow.hardware.backends.triton_choice import (
    DENSE,
    Layout,
    Product,
    Times,
    call_of,
    candidates,
    decide,
    modelled,
)
from sparseflow.hardware.backends.triton_cost import Call, ChipModel, eta_name, occupied
from sparseflow.hardware.flow import Flow
from sparseflow.hardware.plan import Plan
from sparseflow.hardware.routing import route_to
from sparseflow.hardware.workload import Geometry, Workload
from sparseflow.testing.placement import is_feature_major
from sparseflow_kernels.triton_tune import Tuner

GPU = torch.device("cuda")
LARGE = Workload((4096, 4096), rows=8192, density=0.01, device=GPU)
BF16 = replace(LARGE, dtype=torch.bfloat16, compute_dtype=torch.bfloat16)


def chosen(work: Workload) -> list[str]:
    layout = decide(work, modelled(work, H100), "").layout
    return [str(layout.forward), str(layout.dgrad), str(layout.wgrad)]


def test_the_model_takes_the_largest_of_its_limits() -> None:
    chip = ChipModel(
        "chip", tensor_flops=8.0, fp32_flops=4.0, hbm=2.0, l2=1.0, launch=0.25, eta={"eta_gather_fp32": 0.5}
    )
    call = Call("gather", "fp32", rows=2, columns=3, nnz=5, tokens=7)
    # Every kept weight reads a row of x; x, y, the values, their places and columns pass once.
    assert chip.limits(call) == {"L2": 5 * 7 * 4, "HBM": (5 * 7 * 4 + 18 * 5) / 2, "arithmetic": 2 * 5 * 7 / 4}
    assert chip.seconds(call) == 140 / 0.5 + 2 * 0.25
    assert chip.limits(replace(call, dtype="bf16"))["arithmetic"] == 2 * 5 * 7 / 2
    dense = replace(call, family="dense", dtype="bf16")
    assert chip.limits(dense)["arithmetic"] == 2 * 2 * 3 * 7 / 8 and chip.limits(dense)["L2"] == 0


def test_a_panel_reads_the_columns_that_any_of_its_rows_needs() -> None:
    assert occupied(Call("panel", "bf16", 64, 100, 640, 1, height=1)) == pytest.approx(0.1)
    # Sampled: 1 - 0.99^64.
    mask = torch.rand(64, 100_000, generator=torch.Generator().manual_seed(0)) < 0.01
    call = Call("panel", "bf16", 64, 100_000, int(mask.sum()), 1, height=64)
    assert occupied(call) == pytest.approx(float(mask.any(0).double().mean()), rel=1e-2)


def test_an_h100_multiplies_float32_sparsely_and_dense_short_numbers_until_they_are_few() -> None:
    assert chosen(replace(LARGE, density=0.5)) == ["dense"] * 3
    assert chosen(LARGE) == ["gather64"] * 3
    assert chosen(replace(BF16, density=0.05)) == ["dense"] * 3
    assert chosen(replace(BF16, density=0.001)) == ["gather64"] * 3
    at_half_percent = chosen(replace(BF16, density=0.005))
    assert at_half_percent[0] == "panel128" and at_half_percent[2] == "dense"


def test_an_input_gradient_that_nobody_needs_gets_no_structure() -> None:
    assert chosen(replace(LARGE, needs_dx=False)) == ["gather64", "dense", "gather64"]
    assert candidates(replace(LARGE, needs_dx=False), "dgrad") == (DENSE,)


def test_a_kernel_must_be_clearly_faster_than_dense() -> None:
    gather = Product("gather", 16)
    times: Times = {which: {DENSE: 1.01, gather: 1.0} for which in ("forward", "dgrad", "wgrad")}
    assert decide(LARGE, times, "").layout == Layout(Geometry(), DENSE, DENSE, DENSE)
    times = {which: {DENSE: 1.03, gather: 1.0} for which in ("forward", "dgrad", "wgrad")}
    assert decide(LARGE, times, "").layout.forward == gather


def test_float32_never_goes_to_tensor_cores() -> None:
    assert not any(one.kind == "panel" for one in candidates(LARGE, "forward"))
    assert any(one.kind == "panel" for one in candidates(BF16, "forward"))


def test_a_convolution_is_counted_by_its_pixels_and_by_the_phases_of_its_stride() -> None:
    work = Workload((8, 4, 3, 3), Geometry("conv2d", (2, 2), (1, 1)), 5, (12, 12), density=0.5, device=GPU)
    forward, dgrad = (call_of(work, which, DENSE) for which in ("forward", "dgrad"))
    assert (forward.rows, forward.columns, forward.tokens, forward.nnz) == (8, 36, 5 * 36, 144)
    assert (dgrad.rows, dgrad.columns, dgrad.tokens) == (16, 18, 5 * 36)


def test_a_layout_survives_its_text() -> None:
    for layout in (
        Layout(Geometry(), Product("gather", 16, "tokens=64,warps=4"), Product("panel", 128), DENSE),
        Layout(Geometry("conv2d", (2, 1), (1, 0)), DENSE, DENSE, Product("gather", 32)),
    ):
        assert Layout.parse(str(layout)) == layout


def test_a_fitted_model_is_written_and_found_again(own_cache: Path) -> None:
    fitted = H100.fitted({eta_name("gather", "fp32"): 1.4})
    assert ChipModel.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted
    path = fit_path(H100)
    assert path is not None and path.parent == own_cache
    assert chip_of(GPU).eta == {} or torch.cuda.is_available()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fitted.to_json()))
    if not torch.cuda.is_available():
        assert chip_of(GPU) == fitted
    call = call_of(LARGE, "forward", Product("gather", 16))
    assert fitted.seconds(call) < H100.seconds(call)


WRONG: list[dict[str, object]] = [
    {},
    {"format": "other"},
    {**H100.to_json(), "colour": 1},
    {**H100.to_json(), "eta": {"eta_magic": 1}},
    {**H100.to_json(), "eta": {"eta_dense_fp32": 0}},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_model_of_something_else_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected (a chip's model|an efficiency above 0 of one of eta_dense_fp32)"):
        ChipModel.from_json(wrong)


def test_every_chip_is_modelled_in_all_families() -> None:
    for chip in CHIPS.values():
        for work in (LARGE, BF16):
            assert all(0 < seconds < 1 for some in modelled(work, chip).values() for seconds in some.values())
    assert chip_of(torch.device("cpu")) == INTERPRETER
    slow = Triton().cost(replace(LARGE, device=torch.device("cpu")))
    assert slow.seconds > 100 and not slow.measured


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is measured")
def test_a_plan_says_what_each_product_gets_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Triton, "unsupported", lambda self, work: None)
    words = Triton().explain(LARGE)
    assert words.startswith("forward gather64 (3.42x of dense), dgrad gather64 (3.42x of dense), wgrad gather64 (")
    assert words.endswith("x of dense); modelled for the H100 SXM")
    works = {"up": LARGE, "down": replace(BF16, density=0.05)}
    plan = Plan(route_to("triton", works, dict.fromkeys(works, Flow())), {})
    _, up, down, summary = str(plan).splitlines()
    assert up.split()[:3] == ["up", "1.00%", "triton"] and up.endswith(f"named by the caller; {words}")
    assert "forward dense (" in down and "wgrad dense (" in down and "modelled for the H100 SXM" in down
    assert summary == "2 of 2 layers on triton"
    assert Triton().explain(replace(LARGE, rows=0)).endswith(", for 4,096 rows, since no sample was seen")


def test_the_plan_of_a_model_shows_the_choice() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    masks = {"0.weight": torch.rand(6, 8) < 0.5, "2.weight": torch.rand(4, 6) < 0.5}
    plan = sf.plan(model, masks, torch.randn(3, 8), backend="triton")
    # Nobody needs the gradient of the model's input.
    assert [row.layout for row in plan.rows] == [
        "triton/1/linear/gather64/dense/gather64",
        "triton/1/linear/gather64/gather64/gather64",
    ]
    end = "wgrad gather64; interpreted, as modelled for the H100 SXM without dense"
    assert plan.rows[0].reason == f"named by the caller; forward gather64, dgrad dense, {end}"
    auto = sf.plan(model, masks, torch.randn(3, 8), crossovers=False)
    shown = {one.backend: one.cost for row in auto.rows for one in row.candidates}
    assert shown["triton"] is not None and shown["triton"].measured
    assert all(row.backend != "triton" for row in auto.rows)


def test_a_measured_choice_is_tuned_kept_and_found_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Workload((16, 12), rows=8, density=0.3)
    ran: list[tuple[str, str]] = []

    def run(self: triton_measure.Trial, which: str, product: Product) -> Tensor:
        ran.append((which, str(product)))
        return torch.zeros(1)

    def timer(call: Callable[[], Tensor]) -> float:
        call()
        which, product = ran[-1]
        if product == "dense":
            return 0.5 if which == "wgrad" else 2.0
        return {"gather16": 1.5, "gather64": 1.0}.get(product, 0.9 if "repeat=2" in product else 1.1)

    monkeypatch.setattr(triton_measure.Trial, "_run", run)
    monkeypatch.setattr("sparseflow_kernels.triton_tune.gpu_seconds", timer)
    monkeypatch.delenv("TRITON_INTERPRET")
    times = triton_measure.measured(work, H100)
    layout = decide(work, times, "").layout
    assert str(layout.forward).startswith("gather64[") and "repeat=2" in str(layout.forward)
    assert layout.wgrad == DENSE
    assert times["forward"][layout.forward] == 0.9
    ran.clear()
    cache.environment.cache_clear()
    assert triton_measure.measured(work, H100) == times
    assert not ran
    assert [file.name for file in own_cache.iterdir()] == ["triton-tuning.json"]


def test_a_product_of_which_nothing_can_be_timed_is_left_to_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Callable[[], Tensor]) -> float:
        raise RuntimeError("out of memory")

    work = Workload((16, 12), rows=8, density=0.3, needs_dx=False)
    with pytest.warns(UserWarning, match="no kernel of .* could be timed for Workload.*; using dense"):
        # The interpreter of Triton 3.6 does this with every loop.
        warnings.filterwarnings("ignore", "Conversion of an array with ndim > 0", DeprecationWarning)
        times = triton_measure.measured(work, H100, Tuner({}, fail))
    assert all(list(some) == [DENSE] for some in times.values())
    assert all(seconds < math.inf for some in times.values() for seconds in some.values())


def test_a_trial_runs_each_product_as_it_will_run() -> None:
    work = Workload((16, 12), rows=8, density=0.3)
    trial = triton_measure.Trial(work, H100, Tuner({}))
    shapes = {"forward": (8, 16), "dgrad": (8, 12)}
    for which in ("forward", "dgrad", "wgrad"):
        dense, sparse = (trial._run(which, product) for product in (DENSE, Product("gather", 64)))
        assert dense.shape == shapes.get(which, dense.shape)
        assert torch.allclose(dense, sparse, atol=1e-4)


def test_a_gpu_is_measured_once_where_somebody_has_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Workload] = []

    def measured(work: Workload, chip: ChipModel) -> Times:
        asked.append(work)
        return {which: {DENSE: 2.0, Product("gather", 16): 1.0} for which in ("forward", "dgrad", "wgrad")}

    monkeypatch.setattr(triton_measure, "measured", measured)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    work = replace(LARGE, shape=(4096, 4000))
    assert not Triton().cost(work).measured and Triton().layout(replace(work, rows=0)).count("gather64") == 3
    assert not asked
    near = replace(work, density=0.01001, bias=True, relu=True, threads=7)
    assert Triton().layout(work) == Triton().layout(near) == "triton/1/linear/gather16/gather16/gather16"
    assert Triton().explain(work) == (
        "forward gather16 (2.00x of dense), dgrad gather16 (2.00x of dense), wgrad gather16 (2.00x of dense); "
        "each measured on the H100 SXM"
    )
    assert asked == [replace(work, threads=1)]
    # Tensors that come feature-major need no copy.
    Triton().layout(replace(work, chained_in=True))
    assert asked[1:] == [replace(work, threads=1, chained_in=True)]


@pytest.mark.parametrize("chained", [False, True])
def test_a_trial_runs_chained_products_without_copies(chained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Workload((16, 12), rows=8, density=0.3, chained_in=chained, chained_out=chained)
    trial = triton_measure.Trial(work, H100, Tuner({}))
    trial._run("forward", Product("gather", 64))
    copies: list[Tensor] = []
    copy = triton_tokens.empty_feature_major
    monkeypatch.setattr(triton_tokens, "empty_feature_major", lambda x: [copies.append(x), copy(x)][1])
    y, dx = (trial._run(which, product) for which, product in (("forward", Product("gather", 64)), ("dgrad", DENSE)))
    assert is_feature_major(y) == is_feature_major(dx) == chained
    assert len(copies) == (not chained)


def test_a_gpu_that_is_not_the_current_one_is_timed_by_its_own_events(monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[torch.device] = []

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        inside.append(device)
        yield
        inside.pop()

    def times(self: triton_measure.Trial, which: str) -> dict[Product, float]:
        assert inside == [torch.device("cuda:1")]
        return {DENSE: 1.0}

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(triton_measure.Trial, "times", times)
    triton_measure.measured(replace(LARGE, device=torch.device("cuda:1")), H100)


def test_a_layer_in_a_chain_gets_the_layout_that_was_measured_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Workload] = []

    def layout(self: Triton, work: Workload) -> str:
        asked.append(work)
        return f"triton/1/linear/{'gather64' if work.chained_in else 'dense'}/dense/dense"

    monkeypatch.setattr(Triton, "layout", layout)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    masks = {"0.weight": torch.rand(6, 8) < 0.5, "2.weight": torch.rand(4, 6) < 0.5}
    first, second = sf.plan(model, masks, torch.randn(3, 8), backend="triton").rows
    assert first.feature_major and "/dense/dense/dense" in first.layout
    assert not second.feature_major and "/gather64/" in second.layout
    assert {(work.chained_in, work.chained_out) for work in asked} == {(False, True), (True, False)}
