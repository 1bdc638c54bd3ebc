"""From the points of a run to the fitted model of its chip, which the plans of this machine then use."""

from __future__ import annotations

import json
from collections.abc import Iterable

from sparseflow.bench.gpu.fit import Fit, Sample, fit, fitted
from sparseflow.bench.gpu.point import Point
from sparseflow.bench.gpu.products import call_of
from sparseflow.bench.gpu.setting import Setting
from sparseflow.hardware.backends.triton_chips import H100, chip_of, fit_path
from sparseflow.hardware.backends.triton_cost import ChipModel

_SECTIONS = ("kernels", "kernels-wide")
# What the model knows: the kernels as a step uses them. "dense" alone lacks the scratch weight that a step needs.
_SIDES = ("compact", "gather", "panel")


def fit_points(points: Iterable[Point], setting: Setting) -> tuple[list[Fit], ChipModel]:
    """The efficiencies fitted to the kernels' times, and the chip with them: an H100 as modelled where none is here."""
    chip = chip_of(setting.device) if setting.timed else H100
    samples = [Sample(call_of(point), point.density, point.time) for point in points if _counts(point) and point.time]
    fits = fit(chip, samples)
    return fits, fitted(chip, fits)


def keep(model: ChipModel) -> None:
    """Writes the model to where plans look for it on this machine; nowhere if nothing is kept there."""
    path = fit_path(model)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(model.to_json(), indent=2) + "\n")


def _counts(point: Point) -> bool:
    return point.section in _SECTIONS and point.side in _SIDES
