"""The time line of a modelled step, speed-up with its limits, and their pictures."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from sparseflow.hardware.wafer import Transformer, predict, predict_training, wafer
from sparseflow.hardware.wafer.layer import Layer
from sparseflow.hardware.wafer.network import Network
from sparseflow.hardware.wafer.order import turns
from sparseflow.hardware.wafer.speedup import speedups
from sparseflow.hardware.wafer.timeline import LANES, Bar, merged, timeline
from sparseflow.report import write_report
from sparseflow.report.wafer_figures import speedup_against_density, step_timeline

SMALL = Transformer(2, 512, 256, 3000)
STEPS = [
    predict_training(SMALL, 256, density=0.3),
    predict_training(SMALL, 4, density=0.1),
    predict_training(SMALL, 256, "cs3", systems=4),
    predict(replace(SMALL.network(), saved_bytes=3e9), 16, wafer()),
]


@pytest.mark.parametrize("step", STEPS)
def test_bars_make_up_the_step_and_do_not_overlap_in_their_lanes(step: object) -> None:
    assert not isinstance(step, str)
    bars = timeline(step)  # type: ignore[arg-type]
    for lane in LANES:
        own = [bar for bar in bars if bar.lane == lane]
        assert all(first.end <= second.start + 1e-12 for first, second in itertools.pairwise(own)), lane
    assert max(bar.end for bar in bars) == pytest.approx(step.seconds)  # type: ignore[attr-defined]


def test_a_lane_holds_what_the_parts_say() -> None:
    step = STEPS[1]
    seconds = {lane: sum(bar.end - bar.start for bar in timeline(step) if bar.lane == lane) for lane in LANES}
    parts = step.parts
    assert seconds["products"] == pytest.approx(parts["compute"] + parts["attention scores"])
    assert seconds["partial sums"] == pytest.approx(parts["reduction"])
    assert seconds["waiting"] == pytest.approx(parts["waiting for wafer I/O"] + parts["optimizer bubble"])
    assert parts["waiting for wafer I/O"] > 0 and seconds["fixed"] == parts["fixed"]


def test_layers_go_forward_and_back_with_the_first_gradient_last() -> None:
    layers = (Layer("in", 8, 8), Layer("a", 8, 8, count=2), Layer("b", 8, 8, count=2), Layer("head", 8, 8))
    order = [(turn.layer.name, turn.passes) for turn in turns(layers)]
    forward = ["in", "a", "b", "a", "b", "head"]
    assert [name for name, _ in order] == forward + forward[::-1]
    assert {passes for _, passes in order[:6]} == {("forward",)}
    assert {passes for _, passes in order[6:-1]} == {("wgrad", "dgrad")} and order[-1] == ("in", ("dgrad", "wgrad"))
    assert sum(turn.before + turn.after for turn in turns(layers)) == pytest.approx(1)


def test_updates_that_the_store_has_not_done_hold_up_the_next_step() -> None:
    # 4 million weights from one sample: the store's 28 bytes each take longer than the wafer.
    layers = (Layer("first", 64, 64), Layer("second", 2000, 2000))
    step = predict(Network(layers), 1, wafer())
    updates = [bar for bar in timeline(step) if bar.lane == "update in the store"]
    assert [bar.what for bar in updates] == ["second", "first"] and updates[0].end == updates[1].start
    assert step.bubble > 28 * 64 * 64 / 150e9 and updates[1].end == pytest.approx(step.seconds - step.wafer.fixed)


def test_bars_that_nearly_touch_are_drawn_as_one() -> None:
    bars = [
        Bar("products", 0, 1, "a"),
        Bar("waiting", 0, 1, "b"),
        Bar("products", 1.1, 2, "c"),
        Bar("products", 3, 4, "d"),
    ]
    assert [(bar.lane, bar.start, bar.end) for bar in merged(bars, 0.2)] == [
        ("products", 0, 2),
        ("products", 3, 4),
        ("waiting", 0, 1),
    ]


def test_speed_ups_stay_below_their_limits() -> None:
    found = speedups(SMALL.network(), 256, wafer(), [1.0, 0.5, 0.1, 0.01])
    assert found[0].step == found[0].layers == found[0].overlapped == 1.0
    for one in found[1:]:
        assert 1 < one.step < one.layers < 1 / one.density and one.overlapped < 1 / one.density
        assert one.layers <= one.ports
    assert [one.step for one in found] == sorted(one.step for one in found)


def test_pictures_are_svg_that_says_modelled() -> None:
    large = predict_training(Transformer(12, 768, 256, 3000), 64, systems=2)
    few = predict(Network((Layer("in", 64, 64), Layer("out", 64, 64))), 512, wafer())
    drawn = [step_timeline(few), step_timeline(large), speedup_against_density(SMALL.network(), 64, wafer())]
    for svg in drawn:
        assert svg.startswith("<svg ") and svg.endswith("</svg>") and "modelled" in svg and "var(--ticket)" in svg
        assert re.search('aria-label="Modelled ', svg) and "measured" not in svg
    assert all(lane in drawn[0] for lane in LANES[:-1])
    # A long step is drawn as a whole, and its end again.
    assert drawn[0].count("weights in") == 1 and drawn[1].count("weights in") == 2
    assert len(drawn[1]) < 150_000


def test_the_report_of_a_run_on_stream_has_them(tmp_path: Path) -> None:
    network = SMALL.network(0.2)
    assert Network.from_json(json.loads(json.dumps(network.to_json()))) == network
    result = {"name": "streamed", "task": "classification", "rounds": []}
    write_report(result, tmp_path / "without.html")
    assert 'id="wafer"' not in (tmp_path / "without.html").read_text()
    step = {"network": network.to_json(), "batch": 64, "system": "cs3", "systems": 2}
    write_report({**result, "wafer": step}, tmp_path / "with.html")
    page = (tmp_path / "with.html").read_text()
    assert 'id="wafer"' in page and "Modelled time line" in page and "Modelled speed-up" in page
    assert "modelled: a step of 64 samples on 2 × cs3 (WSE-3)" in page
