"""The plots of the report. Densities run from dense on the left to sparse on the right, on a log axis."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sparseflow.report.result import (
    Level,
    Measure,
    Result,
    against_dense,
    levels,
    levels_by_kind,
    state_ratio,
    step_seconds,
)
from sparseflow.report.svg import ARM_COLOURS, INK, MUTED, PAPER, RULE, blank_figure, to_svg
from sparseflow.report.words import interval, percent, points
from sparseflow.training.verdict import DENSE_MARGIN, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE = (7.2, 3.5)
HALF = (4.3, 3.0)
_MARKERS = {"reinit": "s", "shuffle": "D", "random": "^"}


def against_density(
    run: Result, measure: Measure, label: str, *, size: tuple[float, float], scale: float = 1.0
) -> str | None:
    """The measure, times `scale`, against density: the ticket, the dense baseline and the controls.

    Lines are means over seeds; bands and bars run from least to greatest. None if nothing was measured.
    """
    all_levels = levels(run.rounds)
    if all(level.spread(measure) is None for level in all_levels):
        return None
    with blank_figure(*size) as figure:
        axes = figure.add_subplot()
        dense = next((level for level in all_levels if level.round == 0), None)
        if dense is not None:
            _draw_baseline(axes, dense, measure, scale)
        _draw_line(axes, all_levels, measure, "ticket", scale)
        for place, (kind, at) in enumerate(levels_by_kind(run.controls).items()):
            _draw_points(axes, at, measure, kind, scale, shift=1.04 ** (1 - place))
        _density_axis(axes, all_levels)
        axes.set_ylabel(label)
        axes.legend(loc="best", fontsize=8)
        return to_svg(figure, f"{label} against density")


def cost_against_density(run: Result) -> str | None:
    """Time of a training step and length of its state over dense, against density; None if neither is known."""
    all_levels = levels(run.rounds)
    lines: list[tuple[str, Measure, str]] = [
        ("time of a step, measured", against_dense(step_seconds, run.rounds), "-"),
        ("training state, counted", state_ratio, ":"),
    ]
    known = [line for line in lines if any(level.spread(line[1]) is not None for level in all_levels)]
    if not known:
        return None
    with blank_figure(*HALF) as figure:
        axes = figure.add_subplot()
        axes.axhline(1.0, color=ARM_COLOURS["dense"], linestyle="--", linewidth=1.2)
        for label, measure, dash in known:
            _draw_line(axes, all_levels, measure, label, 1.0, dash)
        _density_axis(axes, all_levels)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("times dense")
        axes.legend(loc="best", fontsize=8)
        return to_svg(figure, "Cost of a training step against dense, by density")


def intervals(comparisons: Mapping[str, Comparison]) -> str | None:
    """Ticket minus each arm in points with its 95 % interval, one arm a line; None without comparisons."""
    if not comparisons:
        return None
    with blank_figure(7.2, 0.75 + 0.38 * len(comparisons)) as figure:
        axes = figure.add_subplot()
        for height, (arm, one) in enumerate(reversed(list(comparisons.items()))):
            colour = ARM_COLOURS.get(arm, INK)
            axes.plot([one.low, one.high], [height, height], color=colour, linewidth=5, solid_capstyle="round")
            axes.plot(one.mean, height, "o", color=PAPER, markeredgecolor=colour, markersize=7, markeredgewidth=2)
            said = f"{points(one.mean)}   [{interval(one.low, one.high)}]"
            place = (1.02, height)
            axes.annotate(said, place, xycoords=("axes fraction", "data"), va="center", color=INK)
        axes.axvline(0.0, color=MUTED, linewidth=1)
        axes.axvline(-DENSE_MARGIN, color=ARM_COLOURS["dense"], linewidth=1, linestyle=":")
        axes.set_yticks(range(len(comparisons)), [f"ticket − {arm}" for arm in reversed(list(comparisons))])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(-0.6, len(comparisons) - 0.4)
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("difference in test accuracy, points")
        return to_svg(figure, "Ticket minus each arm, in points, with 95 % intervals")


def _draw_baseline(axes: "Axes", dense: Level, measure: Measure, scale: float) -> None:
    spread = dense.spread(measure)
    if spread is None:
        return
    colour = ARM_COLOURS["dense"]
    axes.axhline(scale * spread.mean, color=colour, linestyle="--", linewidth=1.2, label="dense")
    if spread.count > 1:
        axes.axhspan(scale * spread.low, scale * spread.high, color=colour, alpha=0.1, linewidth=0)


def _draw_line(
    axes: "Axes", all_levels: Sequence[Level], measure: Measure, label: str, scale: float, dash: str = "-"
) -> None:
    found = [(level.density, s) for level in all_levels if (s := level.spread(measure)) is not None]
    density = [d for d, _ in found]
    colour = ARM_COLOURS["ticket"]
    mean = [scale * s.mean for _, s in found]
    axes.plot(density, mean, dash, marker="o", color=colour, markeredgecolor=PAPER, markeredgewidth=0.8, label=label)
    if any(s.count > 1 for _, s in found):
        low, high = [scale * s.low for _, s in found], [scale * s.high for _, s in found]
        axes.fill_between(density, low, high, color=colour, alpha=0.18, linewidth=0)


def _draw_points(axes: "Axes", at: Sequence[Level], measure: Measure, kind: str, scale: float, shift: float) -> None:
    """Points with bars, drawn at `shift` times their density so that one round's stand apart."""
    found = [(level.density, s) for level in at if (s := level.spread(measure)) is not None]
    if not found:
        return
    below = [scale * (s.mean - s.low) for _, s in found]
    above = [scale * (s.high - s.mean) for _, s in found]
    axes.errorbar(
        [shift * d for d, _ in found],
        [scale * s.mean for _, s in found],
        yerr=[below, above],
        fmt=_MARKERS[kind],
        color=ARM_COLOURS[kind],
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        markersize=6,
        elinewidth=1.4,
        capsize=2.5,
        label=kind,
        zorder=3,
    )


def _density_axis(axes: "Axes", all_levels: Sequence[Level]) -> None:
    """A log axis with round tick marks, falling to the right."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    least = min(level.density for level in all_levels)
    marks = [m * 10.0**-e for e in range(7) for m in (1.0, 0.5, 0.2)]
    axes.xaxis.set_major_locator(FixedLocator(sorted(m for m in marks if least * 0.9 <= m <= 1.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda density, _: percent(density)))
    axes.set_xlim(1.12, least / 1.12)
    axes.spines["bottom"].set_color(RULE)
    axes.set_xlabel("density: weights kept")
