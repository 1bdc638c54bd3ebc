"""All sections of the GPU bench, one after another within a budget of time, as text and as plain data."""

from __future__ import annotations

import secrets
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparseflow.bench.figure import Figure
from sparseflow.bench.gpu.bandwidth import bandwidth
from sparseflow.bench.gpu.dense import dense
from sparseflow.bench.gpu.efficiency import fit_points, keep
from sparseflow.bench.gpu.machine import describe_gpu, machine_text, require_gpu
from sparseflow.bench.gpu.modelled import modelled_steps
from sparseflow.bench.gpu.packing import packing
from sparseflow.bench.gpu.peers import cusparselt_version, semi_structured, torch_sparse
from sparseflow.bench.gpu.point import Point
from sparseflow.bench.gpu.products import kernels, kernels_wide
from sparseflow.bench.gpu.promises import promises
from sparseflow.bench.gpu.setting import SQUARE, Setting, full, tiny
from sparseflow.bench.gpu.step import step
from sparseflow.hardware.backends.triton_chips import H100

# One run takes eight minutes at most. The last point that is begun may still have kernels to compile.
MINUTES = 6.5

# Name → what it measures, and how; in the order of what one wants to know first. The promises come before the kernels
# one by one, most of which have to be compiled.
SECTIONS: dict[str, tuple[str, Callable[[Setting], Iterator[Point]]]] = {
    "dense": ("Dense products on the masked weight: what zeros alone bring", dense),
    "2:4": ("2:4 on sparse tensor cores, through cuSPARSELt", semi_structured),
    "torch-sparse": ("torch's own sparse formats beside ours", torch_sparse),
    "step": ("The whole step of a layer, by backend", step),
    "packing": ("A new mask, and the refresh of packed values", packing),
    "kernels": ("Our kernels, product by product, beside dense", kernels),
    "bandwidth": ("What L2 and memory deliver", bandwidth),
    "kernels-wide": ("Our kernels on a wide layer", kernels_wide),
}


def run_gpu_bench(
    only: Sequence[str] = (),
    show: Callable[[str], None] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    minutes: float = MINUTES,
) -> dict[str, Any]:
    """The points and figures of the sections named, or of all, and the chip's model fitted to them, as plain data.

    `show` gets each line as soon as it is there, `save` all that is known after each section. No section begins, and
    none goes on, after so many minutes; what was left out is listed. Under TRITON_INTERPRET=1 small layers are
    checked and nothing is timed. `ValueError` without a GPU, and for a section that does not exist.
    """
    unknown = [name for name in only if name not in SECTIONS]
    if unknown:
        raise ValueError(f"no section {', '.join(map(repr, unknown))} in the bench; choose from: {', '.join(SECTIONS)}")
    device = require_gpu()
    seed = secrets.randbits(31)
    setting = full(device, seed) if device.type == "cuda" else tiny(seed)
    machine = {**describe_gpu(device), "cusparselt": cusparselt_version(), "seed": seed}
    run = _Run(setting, machine, show or (lambda text: None), time.monotonic())
    run.tell(machine_text(machine) + f"; cuSPARSELt {machine['cusparselt']}")
    for name in SECTIONS:
        if not only or name in only:
            run.section(name, minutes)
            if save is not None:
                save(run.found())
    run.finish()
    found = run.found()
    if save is not None:
        save(found)
    return found


@dataclass
class _Run:
    setting: Setting
    machine: dict[str, Any]
    show: Callable[[str], None]
    began: float
    points: list[Point] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def tell(self, text: str) -> None:
        self.lines.append(text)
        self.show(text)

    def section(self, name: str, minutes: float) -> None:
        """Runs one section, as far as the time goes."""
        title, measure = SECTIONS[name]
        if self.minutes >= minutes:
            self.skipped.append(name)
            return
        self.tell(f"\n{title} ({name})")
        try:
            for point in measure(self.setting):
                self.points.append(point)
                self.tell(f"  {point}")
                if self.minutes >= minutes:
                    self.skipped.append(f"the rest of {name}")
                    return
        # Whatever stops a section is its result: what it raised is shown and fails the run; the others go on.
        except Exception as error:
            self.failed[name] = traceback.format_exc()
            self.tell(f"  FAILED: {type(error).__name__}: {error}")

    def finish(self) -> None:
        """Tells the promises, the fitted model, and what was left out."""
        figures = self.figures()
        self.tell("\n".join(["\nPromises", *(f"  {figure}" for figure in figures)]))
        if not self.setting.timed:
            self.tell("\n".join([f"\nModelled for {H100.name}, {SQUARE}", *map(str, modelled_steps(H100, SQUARE))]))
        fits, model = fit_points(self.points, self.setting)
        if fits:
            keep(model)
            self.tell("\n".join([f"\nEfficiencies of {model.name}", *(f"  {one}" for one in fits)]))
        if self.skipped:
            self.tell(f"\nskipped, for want of time: {', '.join(self.skipped)}")
        counts = Counter(figure.verdict for figure in figures)
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        self.tell(f"\n{told}; {self.minutes:.1f} minutes")

    def figures(self) -> list[Figure]:
        """The promises, and one that is broken for every section that failed and every wrong result of ours."""
        broken = [
            Figure(f"section {name}", "", None, True, (), text.strip().splitlines()[-1])
            for name, text in self.failed.items()
        ]
        return promises(self.points, self.setting.timed) + broken

    def found(self) -> dict[str, Any]:
        """All that is known so far."""
        fits, model = fit_points(self.points, self.setting)
        return {
            "machine": self.machine,
            "points": [point.to_json() for point in self.points],
            "figures": [figure.to_json() for figure in self.figures()],
            "fits": [one.to_json() for one in fits],
            "model": model.to_json(),
            "failed": self.failed,
            "skipped": self.skipped,
            "minutes": self.minutes,
            "text": "\n".join(self.lines),
        }

    @property
    def minutes(self) -> float:
        """Since the run began."""
        return (time.monotonic() - self.began) / 60
