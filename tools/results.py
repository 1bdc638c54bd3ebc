"""Fills the README's results table from a run.

python tools/results.py [runs/demo]
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import mean
from typing import Any

README = Path(__file__).parent.parent / "README.md"
KINDS = ("reinit", "shuffle", "random")


def main(folder: Path) -> None:
    """Replaces what stands between the two marks in the README."""
    table = results(json.loads((folder / "result.json").read_text()))
    text = README.read_text()
    filled = re.sub(r"(<!-- results: .*? -->\n).*?(<!-- /results -->)", rf"\g<1>{table}\g<2>", text, flags=re.DOTALL)
    README.write_text(filled)


def results(result: dict[str, Any]) -> str:
    """The verdict and a table of rounds, in Markdown: means over seeds, accuracies in percent at early stop."""
    verdict, machine = result["verdict"], result["machine"]
    lines = [
        f"Verdict on `{result['name']}` at {verdict['density']:.1%} of the weights: **{verdict['value']}**. "
        f"{verdict['reason']}",
        "",
        "| round | density | ticket | reinit | shuffle | random | step time / dense |",
        "|---|---|---|---|---|---|---|",
    ]
    dense = _mean(result["rounds"], 0, "step_seconds")
    for number in sorted({one["round"] for one in result["rounds"]}):
        controls = [_percent(_kind(result, kind), number) for kind in KINDS]
        cells = [
            f"{number}",
            f"{_mean(result['rounds'], number, 'density'):.1%}",
            _percent(result["rounds"], number),
            *controls,
            f"{_mean(result['rounds'], number, 'step_seconds') / dense:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    about = (
        f"LeNet-300-100 on Fashion-MNIST, seeds {result['seeds']}, {machine['cores']} cores ({machine['cpu']}), torch "
        f"{result['versions']['torch']}, {result['seconds']:.0f} s in all. Step times were taken with the seeds side "
        "by side, each round at another time."
    )
    return "\n".join([*lines, "", about, ""])


def _kind(result: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [one for one in result["controls"] if one["kind"] == kind]


def _mean(networks: list[dict[str, Any]], number: int, key: str) -> float:
    return mean(one[key] for one in networks if one["round"] == number)


def _percent(networks: list[dict[str, Any]], number: int) -> str:
    found = [one["test_accuracy"] for one in networks if one["round"] == number]
    return f"{mean(found):.2%}" if found else ""


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
