"""Fills the README's table of speeds from what `sparseflow bench --out FILE` wrote.

python tools/bench_table.py [FILE ...]      by default docs/benchmarks/cpu*.json
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
SPARSITIES = (50, 60, 70, 80, 90, 95, 99)
_NAME = re.compile(r"(?P<case>.*), (?P<sparsity>\d+) % sparse: dense / ours")


def main(paths: list[Path]) -> None:
    """Replaces what stands between the two marks in the README."""
    text = README.read_text()
    table = speeds([json.loads(path.read_text()) for path in paths])
    README.write_text(
        re.sub(r"(<!-- bench: .*? -->\n).*?(<!-- /bench -->)", rf"\g<1>{table}\g<2>", text, flags=re.DOTALL)
    )


def speeds(runs: list[dict[str, Any]]) -> str:
    """How many times faster than dense a step is by case and sparsity, then all other promises, in Markdown."""
    cases: dict[str, dict[int, float]] = {}
    others = []
    for figure in (figure for run in runs for figure in run["figures"]):
        match = _NAME.fullmatch(figure["name"])
        if match is not None and figure["quartiles"]:
            cases.setdefault(match["case"], {})[int(match["sparsity"])] = figure["quartiles"][1]
        elif figure["quartiles"] and figure["limit"] is not None and figure["group"] != "foundation":
            others.append(_other(figure))
    head = " | ".join(f"{sparsity} %" for sparsity in SPARSITIES)
    lines = [f"| one training step, dense / sparse | {head} |", "|---|" + "---|" * len(SPARSITIES)]
    for case, found in cases.items():
        cells = (f"{found[sparsity]:.1f}" if sparsity in found else "" for sparsity in SPARSITIES)
        lines.append(f"| {case} | {' | '.join(cells)} |")
    lines += [
        "",
        "| | measured | promised |",
        "|---|---|---|",
        *others,
        "",
        _about([run["machine"] for run in runs]),
        "",
    ]
    return "\n".join(lines)


def _other(figure: dict[str, Any]) -> str:
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
    main(named or sorted((README.parent / "docs" / "benchmarks").glob("cpu*.json")))
