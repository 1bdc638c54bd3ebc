"""When what happens in a modelled step: what streams, what computes, what waits for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparseflow.hardware.wafer.layer import Pass
from sparseflow.hardware.wafer.order import turns
from sparseflow.hardware.wafer.step import Prediction, update_seconds

Lane = Literal["weights in", "products", "partial sums", "waiting", "gradients out", "update in the store", "fixed"]
LANES: tuple[Lane, ...] = (
    "weights in",
    "products",
    "partial sums",
    "waiting",
    "gradients out",
    "update in the store",
    "fixed",
)


@dataclass(frozen=True)
class Bar:
    """Something that takes from `start` to `end`, in seconds; `what` names the layer and pass."""

    lane: Lane
    start: float
    end: float
    what: str


def timeline(step: Prediction) -> list[Bar]:
    """The bars of one micro-batch, with the step's bubble and fixed time after it, in order of their starts.

    Weights of a pass begin to arrive when it begins, and its gradients to leave. The store updates layer after layer,
    and what it has not done by the end of the last pass keeps the wafer waiting.
    """
    passes = {(one.layer, one.name): one for _, one in step.passes}
    bars: list[Bar] = []
    now = store = 0.0
    for turn in turns(step.network.layers):
        now = _more(bars, "products", now, step.attention * turn.before, "attention scores")
        for name in turn.passes:
            one = passes[turn.layer.name, name]
            bars += _bars(one, now)
            now += one.seconds
            if name == "wgrad":
                update = update_seconds(turn.layer, step.wafer)
                store = _more(bars, "update in the store", max(store, now), update, one.layer)
        now = _more(bars, "products", now, step.attention * turn.after, "attention scores")
    now = _more(bars, "waiting", now, step.spill, "spilled activations")
    now = _more(bars, "waiting", now, step.bubble, "updates")
    _more(bars, "fixed", now, step.wafer.fixed, "fixed")
    return sorted((bar for bar in bars if bar.end > bar.start), key=lambda bar: bar.start)


def merged(bars: list[Bar], gap: float) -> list[Bar]:
    """The same with bars of one lane joined that are less than `gap` seconds apart, for a picture of few strokes."""
    joined: dict[Lane, list[Bar]] = {}
    for bar in bars:
        lane = joined.setdefault(bar.lane, [])
        if lane and bar.start - lane[-1].end < gap:
            lane[-1] = Bar(bar.lane, lane[-1].start, max(bar.end, lane[-1].end), lane[-1].what)
        else:
            lane.append(bar)
    return [bar for lane in joined.values() for bar in lane]


def _bars(one: Pass, start: float) -> list[Bar]:
    what = f"{one.layer}, {one.name}"
    wire: Lane = "gradients out" if one.name == "wgrad" else "weights in"
    computed = start + one.compute
    return [
        Bar(wire, start, start + one.io, what),
        Bar("products", start, computed, what),
        Bar("partial sums", computed, start + one.on_wafer, what),
        Bar("waiting", start + one.on_wafer, start + max(one.io, one.on_wafer), what),
    ]


def _more(bars: list[Bar], lane: Lane, start: float, seconds: float, what: str) -> float:
    bars.append(Bar(lane, start, start + seconds, what))
    return start + seconds
