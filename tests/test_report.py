import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseflow.report import summary, write_report
from sparseflow.report.mask_pictures import input_pictures, mask_pictures
from sparseflow.report.result import Trained, against_dense, levels, seconds
from sparseflow.report.words import duration, percent, selected
from sparseflow.training.verdict import verdict

SECTIONS = {"verdict", "accuracy", "early-stop", "cost", "rounds", "layers", "masks", "plan", "provenance"}
VOID = {"meta", "img", "br", "hr", "link", "input"}
TOTAL = {"fc1.weight": 600, "fc2.weight": 50}


class Page(HTMLParser):
    """Reads a page; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.addresses += [v for name in ("src", "href", "xlink:href") if (v := values.get(name))]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def says(self, words: str) -> bool:
        return words in " ".join(" ".join(self.text).split())


def trained(seed: int, number: int, **other: Any) -> dict[str, Any]:
    density = 0.5**number
    fields = {
        "seed": seed,
        "round": number,
        "density": density,
        "kept": {name: round(size * density) for name, size in TOTAL.items()},
        "total": TOTAL,
        "test_accuracy": 0.88 + 0.01 * number + 0.001 * seed,
        "final_test_accuracy": 0.87,
        "early_stop_step": 4000 - 500 * number,
        "steps": 8000,
        "seconds": 16.0 * density,
        "step_seconds": 0.002 * density,
        "state_ratio": density,
    }
    return fields | other


def a_result(seeds: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    chances = {"ticket": 0.9, "dense": 0.88, "reinit": 0.8, "shuffle": 0.8}
    said = verdict({arm: rng.random((len(seeds), 2000)) < chance for arm, chance in chances.items()})
    candidates = [
        {"backend": "dense", "seconds": 4e-4, "reason": None},
        {"backend": "triton", "seconds": None, "reason": "needs a GPU"},
    ]
    row = {"name": "fc1.weight", "density": 0.25, "backend": "cpu", "reason": "fastest of 2"}
    return {
        "sparseflow": "0.1.0",
        "name": "lenet",
        "task": "classification",
        "recipe": {"train": {"steps": 8000}},
        "versions": {"torch": "2.13.0"},
        "machine": {"cpu": "two cores"},
        "seeds": list(seeds),
        "seconds": 203.1,
        "plan": {str(s): [{"rows": [row | {"candidates": candidates}]} for _ in range(3)] for s in seeds},
        "rounds": [trained(s, number) for s in seeds for number in range(3)],
        "controls": [trained(s, 2, kind=k, test_accuracy=0.86) for s in seeds for k in ("reinit", "shuffle")],
        "verdict": said.to_json() | {"round": 2, "density": 0.25},
    }


def some_masks() -> dict[int, dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return {n: {"fc1.weight": rng.random((12, 50)) < 0.5**n, "fc2.weight": np.eye(5) > 0} for n in (0, 1, 2)}


def written(path: Path, result: dict[str, Any], **options: Any) -> tuple[str, Page]:
    write_report(result, path / "report.html", **options)
    html = (path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert set(page.ids) >= SECTIONS
    return html, page


def test_the_page_stands_alone_and_says_what_the_run_found(tmp_path: Path) -> None:
    html, page = written(tmp_path, a_result(), masks=some_masks(), input_shape=(5, 10))
    assert "://" not in html
    assert "<script" not in html and "<link" not in html and "@import" not in html
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert all(target in page.ids for target in re.findall(r'(?:url\(|href=")#([\w-]+)', html))
    # Verdict, accuracy, early stop, cost and seconds.
    assert html.count("<svg") == 5
    assert html.count("<img") == 3 + 2
    assert page.says("The pruned network at 25 % of its weights is a winning ticket.")
    assert page.says(a_result()["verdict"]["reason"])
    assert page.says("Round 2, at 25 % of the weights, had the fastest step: 0.25× the time of the dense step.")
    assert page.says("90.15 % (90.10–90.20)")
    assert page.says("dense: 400 µs · triton: needs a GPU")
    assert page.says("torch 2.13.0") and page.says("steps: 8000") and page.says("3 min 23 s")


def test_plots_take_their_colours_from_the_page(tmp_path: Path) -> None:
    html, _ = written(tmp_path, a_result())
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set()
    assert "var(--ticket)" in drawn and "var(--ink)" in drawn


def test_a_language_task_shows_its_loss(tmp_path: Path) -> None:
    result = a_result()
    result["task"] = "language"
    for network in result["rounds"] + result["controls"]:
        network |= {"test_loss": 1.2345}
    html, page = written(tmp_path, result)
    assert "Test loss at early stop: lower is better." in html
    assert page.says("1.2345")
    assert "test loss" in summary(result) and "1.2345" in summary(result)


def test_one_seed_without_controls_or_verdict(tmp_path: Path) -> None:
    result = a_result(seeds=(7,)) | {"controls": [], "verdict": None}
    html, page = written(tmp_path, result)
    assert page.says("No verdict") and page.says("– Nothing was compared in this run.")
    assert page.says("– No masks were given to this report.")
    assert page.says("one seed")
    assert html.count("<svg") == 4
    assert "No verdict" in summary(result)


@pytest.mark.parametrize(("value", "words"), [("not a ticket", "is not a"), ("undecided", "Undecided whether")])
def test_a_miss_is_shown_as_a_miss(tmp_path: Path, value: str, words: str) -> None:
    result = a_result()
    result["verdict"] |= {"value": value, "reason": "It is 2 points worse."}
    _, page = written(tmp_path, result)
    assert page.says(words) and page.says("It is 2 points worse.")
    assert words in summary(result)


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    bare = {"name": "bare", "task": "classification", "rounds": [{"seed": 1, "round": 0, "density": 1.0}]}
    html, page = written(tmp_path, bare)
    for words in ("test accuracy or loss", "early-stop step", "times"):
        assert page.says(f"– No {words}")
    assert page.says("recorded no plan") and page.says("did not count their layers")
    assert "None" not in html and "nan" not in " ".join(page.text).split()
    assert summary(bare).splitlines()[-1].split() == ["0", "100", "%", "–", "–", "–"]


def test_a_run_stopped_before_its_first_round(tmp_path: Path) -> None:
    empty: dict[str, Any] = {"name": "early", "task": "classification", "rounds": [], "verdict": None}
    _, page = written(tmp_path, empty)
    assert page.says("– No round has finished.")
    assert "No round has finished." in summary(empty)


def test_slower_than_dense_is_said(tmp_path: Path) -> None:
    result = a_result()
    for network in result["rounds"]:
        if network["round"] == 1:
            network["step_seconds"] = 0.003
    _, page = written(tmp_path, result)
    assert page.says("Slower than dense: round 1.")
    assert page.says("1.50×")


def test_names_are_escaped(tmp_path: Path) -> None:
    hostile = '<script>alert("x")</script>&'
    result = a_result() | {"name": hostile, "machine": {hostile: hostile}, "recipe": {"note": hostile}}
    result["verdict"] |= {"reason": hostile}
    result["rounds"] = [n | {"kept": {hostile: 1}, "total": {hostile: 2}} for n in result["rounds"]]
    result["plan"] = {"1": [{"rows": [{"name": hostile, "backend": hostile}]}]}
    html, page = written(tmp_path, result, masks={0: {hostile: np.ones((2, 2), dtype=bool)}})
    assert "<script" not in html
    assert page.says(hostile)


def test_mistakes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rounds"):
        write_report({"name": "x", "task": "classification"}, tmp_path / "report.html")
    with pytest.raises(ValueError, match="kind"):
        summary(a_result() | {"controls": [trained(1, 1, kind="reinnit")]})
    flat: Any = {"fc1.weight": np.ones((2, 2), dtype=bool)}
    with pytest.raises(TypeError, match=r"pass \{round: masks\}, got keys 'fc1.weight'"):
        write_report(a_result(), tmp_path / "report.html", masks=flat)


def test_summary_is_about_twelve_lines_and_keeps_the_verdicts_round() -> None:
    result = a_result()
    result["rounds"] = [trained(1, number) for number in range(20)]
    result["verdict"] |= {"round": 11}
    lines = summary(result).splitlines()
    assert len(lines) <= 12
    shown = [int(line.split()[0]) for line in lines[4:]]
    assert shown[0] == 0 and shown[-1] == 19 and 11 in shown and len(shown) == 7
    assert all("\x1b" not in line for line in lines)


def test_summary_puts_controls_and_time_beside_the_ticket() -> None:
    lines = summary(a_result()).splitlines()
    head = "round density test accuracy reinit shuffle early stop step time / dense"
    assert lines[3].split() == head.split()
    assert lines[-1].split() == ["2", "25", "%", "90.15", "%", "86.00", "%", "86.00", "%", "3,000", "0.25×"]


def test_ratios_are_against_the_same_seeds_dense_network() -> None:
    networks = [
        Trained(seed=1, round=0, density=1.0, seconds=10.0),
        Trained(seed=2, round=0, density=1.0, seconds=20.0),
        Trained(seed=1, round=1, density=0.5, seconds=5.0),
        Trained(seed=2, round=1, density=0.5, seconds=20.0),
        Trained(seed=3, round=1, density=0.5, seconds=99.0),
    ]
    spread = levels(networks)[1].spread(against_dense(seconds, networks))
    assert spread is not None
    assert (spread.mean, spread.low, spread.high, spread.count) == (0.75, 0.5, 1.0, 2)


def test_input_pictures_only_where_the_inputs_are_an_image() -> None:
    masks = some_masks()
    assert [(p.width, p.height) for p in input_pictures(masks, (5, 10), None)] == [(10, 5)] * 3
    assert [(p.width, p.height) for p in input_pictures(masks, (2, 5, 5), None)] == [(5, 5)] * 3
    assert "round 0: 12 weights a pixel" in input_pictures(masks, (5, 10), None)[0].caption
    for not_an_image in ((50,), (7, 7), ()):
        assert input_pictures(masks, not_an_image, None) == []
    convolution = {0: {"conv.weight": np.ones((4, 1, 3, 3), dtype=bool)}}
    assert input_pictures(convolution, (3, 3), None) == []


def test_mask_pictures_are_small_and_know_their_density() -> None:
    large = np.zeros((1000, 3, 20, 20), dtype=bool)
    large[:250] = True
    (picture,) = mask_pictures({"conv.weight": large})
    assert (picture.width, picture.height) == (320, 160)
    assert picture.caption == "conv.weight: 1000 × 1200, 25 % kept"


@pytest.mark.parametrize("most", [2, 3, 7])
def test_selected_keeps_first_last_and_the_one_asked_for(most: int) -> None:
    chosen = selected(range(30), most, 0 if most == 2 else 11)
    assert len(chosen) == most and chosen[0] == 0 and chosen[-1] == 29
    assert most == 2 or 11 in chosen
    assert selected([3, 5], 7) == [3, 5]


def test_numbers_are_written_with_suitable_units() -> None:
    said = [duration(s) for s in (None, 2.5e-6, 0.0017, 15.23, 203.1, 7500)]
    assert said == ["–", "2.5 µs", "1.7 ms", "15.2 s", "3 min 23 s", "2 h 5 min"]
    assert [percent(d) for d in (None, 1.0, 0.10832, 0.00123)] == ["–", "100 %", "10.8 %", "0.123 %"]


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, sparseflow.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
