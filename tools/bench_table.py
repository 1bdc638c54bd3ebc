"""Fills the README's table of speeds and docs/cpu.md's promises from what `sparseflow bench --out FILE` wrote.

python tools/bench_table.py [FILE ...]      by default docs/benchmarks/cpu*.json
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README, PAGE = ROOT / "README.md", ROOT / "docs" / "cpu.md"
SPARSITIES = (50, 60, 70, 80, 90, 95, 99)
_NAME = re.compile(r"(?P<case>.*), (?P<sparsity>\d+) % sparse: dense / ours")

Figure = dict[str, Any]


def main(paths: list[Path]) -> None:
    """Replaces what stands between the marks `bench` in the README and `promises` in docs/cpu.md."""
    runs = [json.loads(path.read_text()) for path in paths]
    figures = [figure for run in runs for figure in run["figures"] if figure["quartiles"]]
    about = _about([run["machine"] for run in runs])
    _fill(README, "bench", [*speeds(figures), "", about, "", _misses(figures)])
    _fill(PAGE, "promises", [*promises(figures), "", about])


def speeds(figures: list[Figure]) -> list[str]:
    """How many times faster than dense a step is, by case and sparsity, in Markdown."""
    cases: dict[str, dict[int, float]] = {}
    for figure in figures:
        match = _NAME.fullmatch(figure["name"])
        if match is not None:
            cases.setdefault(match["case"], {})[int(match["sparsity"])] = figure["quartiles"][1]
    head = " | ".join(f"{sparsity} %" for sparsity in SPARSITIES)
    lines = [f"| one training step, dense / sparse | {head} |", "|---|" + "---|" * len(SPARSITIES)]
    for case, found in cases.items():
        cells = (f"{found[sparsity]:.1f}" if sparsity in found else "" for sparsity in SPARSITIES)
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return lines


def promises(figures: list[Figure]) -> list[str]:
    """Everything else that was promised, beside what was found, in Markdown."""
    return ["| | measured | promised |", "|---|---|---|", *(_row(figure) for figure in _promised(figures))]


def _promised(figures: list[Figure]) -> list[Figure]:
    return [
        figure
        for figure in figures
        if figure["limit"] is not None and figure["group"] != "foundation" and not _NAME.fullmatch(figure["name"])
    ]


def _misses(figures: list[Figure]) -> str:
    """How many promises were held, and those that were not."""
    found = _promised(figures)
    missed = [figure for figure in found if figure["missed"]]
    held = f"Of {len(found)} other promises ([docs/cpu.md](docs/cpu.md)) {len(found) - len(missed)} are held"
    if not missed:
        return f"{held}."
    words = "; ".join(f"{one['name']}: {one['quartiles'][1]:.2f}, promised {one['limit']:g}" for one in missed)
    return f"{held}. Missed: {words}."


def _fill(page: Path, mark: str, lines: list[str]) -> None:
    text = "\n".join(lines) + "\n"
    pattern = rf"(<!-- {mark}: .*? -->\n).*?(<!-- /{mark} -->)"
    page.write_text(re.sub(pattern, lambda found: found[1] + text + found[2], page.read_text(), flags=re.DOTALL))


def _row(figure: Figure) -> str:
    low, middle, high = figure["quartiles"]
    sign = "≥" if figure["at_least"] else "≤"
    missed = ", **missed**" if figure["missed"] else ""
    found = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
    return f"| {figure['name']} | {found} {figure['unit']} | {sign} {figure['limit']:g}{missed} |"


def _about(machines: list[dict[str, Any]]) -> str:
    machine = machines[0]
    loads = ", ".join(f"{one['load_before']} and {one['load_after']}" for one in machines)
    return (
        f"Medians of at least seven repeats in turn within one run, float32, on {machine['cores']} shared cores of an "
        f"{machine['model']}, {machine['cpu']}, torch {machine['torch']}; load averages before and after: {loads}. "
        "In brackets: quartiles."
    )


if __name__ == "__main__":
    named = [Path(name) for name in sys.argv[1:]]
    main(named or sorted((ROOT / "docs" / "benchmarks").glob("cpu*.json")))
