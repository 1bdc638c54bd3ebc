"""From the points of a run to the fitted model of its chip, which the plans of this machine then use."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import cast

from sparseflow.bench.gpu.fit import Fit, Sample, fit, fitted
from sparseflow.bench.gpu.point import Point
from sparseflow.bench.gpu.setting import Setting
from sparseflow.hardware.backends.triton_chips import H100, chip_of, fit_path
from sparseflow.hardware.backends.triton_cost import Call, ChipModel, Dtype, Family

_SECTIONS = ("kernels", "kernels-wide")
_FAMILIES: dict[tuple[str, str], Family] = {
    ("gather", "forward"): "gather",
    ("gather", "dgrad"): "gather",
    ("gather", "wgrad"): "gather_wgrad",
    ("panel", "forward"): "panel",
    ("panel", "dgrad"): "panel",
    ("panel", "wgrad"): "panel_wgrad",
    ("dense", "forward"): "dense",
    ("dense", "dgrad"): "dense",
    ("dense", "wgrad"): "dense",
}


def fit_points(points: Iterable[Point], setting: Setting) -> tuple[list[Fit], ChipModel]:
    """The efficiencies fitted to the kernels' times, and the chip with them: an H100 as modelled where none is here."""
    chip = chip_of(setting.device) if setting.timed else H100
    samples = [Sample(call_of(point), point.density, point.time) for point in points if _counts(point) and point.time]
    fits = fit(chip, samples)
    return fits, fitted(chip, fits)


def call_of(point: Point) -> Call:
    """The product of a point as the cost model sees it."""
    outputs, inputs, tokens = point.shape
    rows, columns = (inputs, outputs) if point.product == "dgrad" else (outputs, inputs)
    nnz = max(1, round(point.density * outputs * inputs))
    family = _FAMILIES[point.side, point.product]
    return Call(family, cast(Dtype, point.dtype), rows, columns, nnz, tokens, point.height)


def keep(model: ChipModel) -> None:
    """Writes the model to where plans look for it on this machine; nowhere if nothing is kept there."""
    path = fit_path(model)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(model.to_json(), indent=2) + "\n")


def _counts(point: Point) -> bool:
    return point.section in _SECTIONS and (point.side, point.product) in _FAMILIES
