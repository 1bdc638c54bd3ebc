"""Pictures of a modelled step on a wafer: its time line, and speed-up against density with its limits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparseflow.report.result import WaferStep
from sparseflow.report.svg import ARM_COLOURS, INK, MUTED, blank_figure, to_svg
from sparseflow.report.words import duration, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sparseflow.hardware.wafer import Network, Prediction, Wafer
    from sparseflow.hardware.wafer.speedup import Speedup
    from sparseflow.hardware.wafer.timeline import Bar

_DENSITIES = tuple(10 ** (-step / 5) for step in range(11))
_COLOURS = {
    "weights in": ARM_COLOURS["ticket"],
    "products": ARM_COLOURS["random"],
    "partial sums": ARM_COLOURS["reinit"],
    "waiting": MUTED,
    "gradients out": ARM_COLOURS["ticket"],
    "update in the store": ARM_COLOURS["shuffle"],
}
# Bars nearer to each other than this share of the whole are drawn as one.
_RESOLUTION = 1 / 400
# Passes in a picture of a step's end.
_SHOWN_ALONE = 12


@dataclass(frozen=True)
class WaferPictures:
    """A run's step on a wafer: what the model says in words, and its two pictures as SVG."""

    words: str
    timeline: str
    speedup: str


def wafer_pictures(found: WaferStep | None) -> WaferPictures | None:
    """What the report shows of a run on `stream`, None for other runs. `ValueError` where its record is damaged."""
    if found is None:
        return None
    # The model is only loaded where there is something to draw.
    from sparseflow.hardware.wafer import Network, predict, wafer
    from sparseflow.hardware.wafer.words import describe

    network, machine = Network.from_json(found.network), wafer(found.system)
    step = predict(network, found.batch, machine, systems=found.systems)
    speedup = speedup_against_density(network, found.batch, machine, found.systems)
    return WaferPictures(describe(step), step_timeline(step), speedup)


def step_timeline(step: "Prediction") -> str:
    """What streams, computes and waits in one micro-batch of a modelled step; where that is much, also its end alone.

    Without the fixed time that ends every step: it is named beside the axis.
    """
    from sparseflow.hardware.wafer.timeline import timeline

    bars = [bar for bar in timeline(step) if bar.lane != "fixed"]
    products = [bar for bar in bars if bar.lane == "products"]
    windows = [0.0] if len(products) <= 2 * _SHOWN_ALONE else [0.0, products[-_SHOWN_ALONE].start]
    with blank_figure(7.2, 2.6 * len(windows) + 0.2) as figure:
        panels = figure.subplots(len(windows), squeeze=False)[:, 0]
        for axes, start in zip(panels, windows):
            _lanes(axes, bars, start)
        of = "" if step.micro_batches == 1 else f", one of {step.micro_batches} micro-batches"
        fixed = f"; then {duration(step.wafer.fixed)} fixed" if step.wafer.fixed else ""
        panels[-1].set_xlabel(f"seconds, modelled for {step.systems} × {step.wafer.system.name}{of}{fixed}")
        return to_svg(figure, f"Modelled time line of a training step of {duration(step.seconds)}")


def speedup_against_density(network: "Network", batch: int, wafer: "Wafer", systems: int = 1) -> str:
    """Dense step over sparse step, modelled, for densities from 1 to 0.01, below what limits it."""
    from sparseflow.hardware.wafer.speedup import speedups

    found = speedups(network, batch, wafer, _DENSITIES, systems)
    with blank_figure(7.2, 3.5) as figure:
        axes = figure.add_subplot()
        densities = [one.density for one in found]
        _limits(axes, densities, found)
        axes.plot(densities, [one.step for one in found], color=ARM_COLOURS["ticket"], label="the whole step")
        _axes(axes)
        axes.set_ylabel(f"times faster than dense, modelled, {wafer.system.name}")
        axes.legend(loc="upper left", fontsize=8)
        return to_svg(figure, "Modelled speed-up of a training step against density, with its limits")


def _lanes(axes: "Axes", bars: "Sequence[Bar]", start: float) -> None:
    """Draws the bars from `start` on."""
    from sparseflow.hardware.wafer.timeline import LANES, merged

    end = max(bar.end for bar in bars)
    shown = [bar for bar in bars if bar.end > start]
    for bar in merged(shown, (end - start) * _RESOLUTION):
        left = max(bar.start, start)
        axes.barh(LANES.index(bar.lane), bar.end - left, 0.7, left, color=_COLOURS[bar.lane], linewidth=0)
    lanes = LANES[:-1]
    axes.set_yticks(range(len(lanes)), lanes)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_xlim(start, end)
    axes.grid(False)
    axes.spines["left"].set_visible(False)


def _limits(axes: "Axes", densities: Sequence[float], found: "Sequence[Speedup]") -> None:
    ideal = [1 / density for density in densities]
    axes.plot(densities, ideal, "--", color=ARM_COLOURS["dense"], linewidth=1.2, label="1 / density")
    low, high = [one.layers for one in found], [one.overlapped for one in found]
    axes.fill_between(densities, low, high, color=ARM_COLOURS["reinit"], alpha=0.18, linewidth=0)
    label = "pruned layers, partial sums shown to hidden"
    axes.plot(densities, low, color=ARM_COLOURS["reinit"], linewidth=1.2, label=label)
    ports = [one.ports for one in found]
    axes.plot(densities, ports, ":", color=MUTED, linewidth=1.2, label="pruned layers, wafer I/O alone")


def _axes(axes: "Axes") -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda density, _: percent(density)))
    axes.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda times, _: f"{times:g}×"))
    axes.set_xlim(1.12, 0.01 / 1.12)
    axes.set_ylim(0.9, 120)
    axes.set_xlabel("density: weights kept")
