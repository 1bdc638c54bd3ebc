"""Fills docs/stream.md: the validation of the machine model, and what the bench measured.

python tools/stream_table.py [FILE]     by default docs/benchmarks/stream.json

The first is what `sparseflow bench --backend stream --validate` prints; FILE is what `sparseflow bench --backend stream
--out FILE` wrote.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from sparseflow.bench.stream import bench_stream

PAGE = Path(__file__).parent.parent / "docs" / "stream.md"
RUN = PAGE.parent / "benchmarks" / "stream.json"


def main(run: Path) -> None:
    """Replaces what stands between the marks."""
    page = _between("validate", PAGE.read_text(), bench_stream(validate=True)["text"])
    PAGE.write_text(_between("measured", page, measured(json.loads(run.read_text()))))


def measured(run: dict[str, Any]) -> str:
    """All figures of a run, in Markdown; what was missed says so."""
    machine = run["machine"]
    loads = f"load averages before and after: {machine['load_before']} and {machine['load_after']}"
    about = f"{machine['cores']} shared cores of an {machine['model']}, torch {machine['torch']}; {loads}."
    return "\n".join(["| | measured | promised |", "|---|---|---|", *map(_row, run["figures"]), "", about])


def _row(figure: dict[str, Any]) -> str:
    promised = "" if figure["limit"] is None else f"{'≥' if figure['at_least'] else '≤'} {figure['limit']:g}"
    if not figure["quartiles"]:
        return f"| {figure['name']} | not measured: {figure['absent'] or figure['check']} | {promised} |"
    low, middle, high = figure["quartiles"]
    spread = "" if low == high else f" [{low:.2f}, {high:.2f}]"
    missed = ", **missed**" if _missed(figure, middle) else ""
    return (
        f"| {figure['name']} | {middle:.{1 if middle >= 100 else 2}f}{spread} {figure['unit']} | {promised}{missed} |"
    )


def _missed(figure: dict[str, Any], middle: float) -> bool:
    # By the median, though the bench forgives what the better quartile meets.
    if figure["limit"] is None:
        return False
    return bool(middle < figure["limit"] if figure["at_least"] else middle > figure["limit"])


def _between(mark: str, page: str, text: str) -> str:
    parts = re.compile(rf"(<!-- {mark}: .*? -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    assert parts.search(page), f"{PAGE}: expected the marks of {mark!r}"
    return parts.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else RUN)
