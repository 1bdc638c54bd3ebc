"""The efficiencies of a chip's cost model, fitted to times that are known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.bench.gpu.efficiency import fit_points, keep
from sparseflow.bench.gpu.fit import Sample, fit, fitted
from sparseflow.bench.gpu.modelled import modelled_steps
from sparseflow.bench.gpu.point import Point
from sparseflow.bench.gpu.products import call_of
from sparseflow.bench.gpu.setting import SQUARE, tiny
from sparseflow.hardware.backends.triton_chips import H100, chip_of, fit_path
from sparseflow.hardware.backends.triton_cost import Call, ChipModel

DENSITIES = (0.1, 0.05, 0.01, 0.001)


def samples(etas: dict[str, float], noise: tuple[float, ...] = (1.0,) * len(DENSITIES)) -> list[Sample]:
    """Times that a chip of these efficiencies would take, each multiplied by its noise."""
    found = []
    for family, eta in etas.items():
        for density, factor in zip(DENSITIES, noise, strict=True):
            call = Call(family, "fp32", 4096, 4096, round(density * 4096**2), 8192)  # type: ignore[arg-type]
            found.append(Sample(call, density, factor * max(H100.limits(call).values()) / eta))
    return found


@given(st.floats(0.01, 3.0), st.floats(0.01, 3.0))
@settings(max_examples=20, deadline=None)
def test_known_efficiencies_are_found_and_predict_exactly(gather: float, dense: float) -> None:
    fits = fit(H100, samples({"gather": gather, "dense": dense}))
    assert {one.name: one.eta for one in fits} == pytest.approx({"eta_gather_fp32": gather, "eta_dense_fp32": dense})
    assert [one.held_out for one in fits] == pytest.approx([1.0, 1.0]) and [one.samples for one in fits] == [4, 4]


def test_the_fit_is_least_squares_of_logarithms() -> None:
    # Twice and half as long as the model says: the middle is the truth, and each misses the rest by its own share.
    (one,) = fit(H100, samples({"gather": 0.5}, noise=(2.0, 0.5, 1.0, 1.0)))
    assert one.eta == pytest.approx(0.5)
    off = math.log(2)
    # Without a sample of +off, -off, 0 or 0 the mean of the others is -off/3, off/3, 0 or 0.
    rms = math.sqrt(2 * (off + off / 3) ** 2 / 4)
    assert one.held_out == pytest.approx(math.exp(rms))
    assert "held-out error a factor of 1.92" in str(one)


def test_one_density_tells_nothing_about_others() -> None:
    (one,) = fit(H100, samples({"gather": 0.5})[:1])
    assert one.held_out is None and "held-out error not known" in str(one)


def test_a_model_that_is_wrong_in_shape_shows_in_the_held_out_error() -> None:
    # Times that do not depend on the density, as if all were launches.
    flat = [replace(sample, seconds=1e-3) for sample in samples({"gather": 0.5})]
    (one,) = fit(H100, flat)
    assert one.held_out is not None and one.held_out > 3


def point(side: str, product: str, seconds: float, kernel: str, section: str = "kernels") -> Point:
    size = (11008, 4096, 8192)
    return Point(section, side, product, "bf16", 0.01, size, seconds=(seconds,) * 9, config=kernel)


def test_points_become_calls_with_the_rows_that_the_product_has() -> None:
    kernel = "panel128[tokens=64]"
    forward, dgrad, wgrad = (call_of(point("panel", product, 1.0, kernel)) for product in ("forward", "dgrad", "wgrad"))
    assert (forward.family, forward.rows, forward.columns, forward.height) == ("panel", 11008, 4096, 128)
    assert (dgrad.family, dgrad.rows, dgrad.columns) == ("panel", 4096, 11008)
    assert (wgrad.family, wgrad.rows, wgrad.columns) == ("panel_wgrad", 11008, 4096)
    assert forward.nnz == round(0.01 * 11008 * 4096) and forward.dtype == "bf16" and forward.tokens == 8192
    assert call_of(point("compact", "dgrad", 1.0, "dense")).family == "dense"


def test_only_checked_times_of_the_kernels_are_fitted() -> None:
    wrong = replace(point("panel", "forward", 1.0, "panel64"), seconds=(), check="row 1 is off")
    others = [
        point("dense", "forward", 1.0, ""),
        point("torch CSR", "forward", 1.0, ""),
        point("gather", "forward", 1.0, "gather16", section="torch-sparse"),
    ]
    right = point("gather", "forward", 2e-3, "gather16[tokens=32]")
    fits, model = fit_points([right, wrong, *others], tiny(0))
    assert [one.name for one in fits] == ["eta_gather_bf16"]
    assert model.name == H100.name and set(model.eta) == {"eta_gather_bf16"}
    assert model.seconds(call_of(right)) == pytest.approx(2e-3 + 2 * model.launch)


def test_plans_find_the_fitted_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEFLOW_CACHE_DIR", str(tmp_path / "new"))
    model = fitted(H100, fit(H100, samples({"gather": 0.25})))
    keep(model)
    path = fit_path(H100)
    assert path is not None and ChipModel.from_json(json.loads(path.read_text())) == model
    # Where torch has no GPU an H100 is assumed.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chip_of(torch.device("cuda")).eta == {"eta_gather_fp32": pytest.approx(0.25)}
    monkeypatch.setenv("SPARSEFLOW_CACHE_DIR", "")
    keep(model)


def test_modelled_steps_never_lose_and_grow_with_sparsity() -> None:
    rows = list(modelled_steps(H100, SQUARE))
    for dtype in ("fp32", "bf16"):
        steps = [row.step for row in rows if row.dtype == dtype]
        assert steps == sorted(steps) and steps[0] >= 1
    assert all(row.step <= row.limit and "modelled" in str(row) for row in rows)
    assert {(row.dtype, row.density): row.floor for row in rows}["fp32", 0.01] == 12
