"""Fills the table of docs/gpu.md: from what was measured on GPUs, else from the cost model, and then called modelled.

    python tools/gpu_table.py [FILE ...]      by default docs/benchmarks/gpu-*.json

FILE is what `sparseflow bench --backend triton --json FILE` wrote.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from sparseflow.bench.gpu.modelled import Modelled, modelled_steps
from sparseflow.bench.gpu.setting import SQUARE
from sparseflow.hardware.backends.triton_chips import H100

PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
_MARKED = re.compile(r"(<!-- gpu table: .*? -->\n).*?(<!-- /gpu table -->)", re.DOTALL)


def main(paths: list[Path]) -> None:
    """Replaces what stands between the two marks in the page."""
    PAGE.write_text(filled(PAGE.read_text(), [json.loads(path.read_text()) for path in paths]))


def filled(page: str, runs: list[dict[str, Any]]) -> str:
    """The page with the table of these runs, or, where there are none, of the model."""
    table = "\n".join(measured(run) for run in runs) if runs else modelled()
    return _MARKED.sub(lambda marks: marks[1] + table + marks[2], page)


def modelled() -> str:
    """The model's steps, in Markdown; every figure says that it is modelled."""
    lines = [
        f"Nothing here was measured. Modelled for one layer {SQUARE} on an {H100.name}, how many times faster than the "
        "backend's own dense products; in brackets what runs it.",
        "",
        "| dtype | sparse | forward, dgrad | wgrad | step | step, if L2 and memory gave their full rate | promised |",
        "|---|---|---|---|---|---|---|",
        *(_modelled_row(one) for one in modelled_steps(H100, SQUARE)),
        "",
    ]
    return "\n".join(lines)


def measured(run: dict[str, Any]) -> str:
    """One run's promises and efficiencies, in Markdown."""
    machine = run["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "triton", "cuda", "hip") if machine[name])
    driver = f", driver {machine['driver_version']}" if "driver_version" in machine else ""
    skipped = f" Left out for want of time: {', '.join(run['skipped'])}." if run["skipped"] else ""
    return "\n".join(
        [
            f"Measured on an {machine['gpu']}{driver}, {versions}; medians of nine samples in turn, in brackets "
            f"quartiles.{skipped}",
            "",
            "| | measured | promised |",
            "|---|---|---|",
            *(_measured_row(figure) for figure in run["figures"] if figure["limit"] is not None),
            "",
            "| efficiency of the cost model | fitted | points | held-out error, a factor of |",
            "|---|---|---|---|",
            *(_fit_row(fit) for fit in run["fits"]),
            "",
        ]
    )


def _modelled_row(row: Modelled) -> str:
    def cell(value: float, kernel: str = "") -> str:
        return f"modelled {value:.1f}" + (f" ({kernel})" if kernel else "")

    forward, wgrad = (cell(row.speedups[which], row.kernels[which]) for which in ("forward", "wgrad"))
    promised = "" if row.floor is None else f"≥ {row.floor:g}"
    sparse = f"{100 * (1 - row.density):g} %"
    return f"| {row.dtype} | {sparse} | {forward} | {wgrad} | {cell(row.step)} | {cell(row.limit)} | {promised} |"


def _measured_row(figure: dict[str, Any]) -> str:
    if figure["quartiles"] is None:
        found = (
            f"**wrong result**: {figure['check']}" if figure["check"] != "ok" else f"not measured: {figure['absent']}"
        )
    else:
        low, middle, high = figure["quartiles"]
        found = f"{middle:.2f} [{low:.2f}, {high:.2f}] {figure['unit']}"
    missed = ", **missed**" if figure["verdict"] == "missed" else ""
    return f"| {figure['name']} | {found} | {'≥' if figure['at_least'] else '≤'} {figure['limit']:g}{missed} |"


def _fit_row(fit: dict[str, Any]) -> str:
    error = "not known" if fit["held_out"] is None else f"{fit['held_out']:.2f}"
    return f"| `{fit['name']}` | {fit['eta']:.3f} | {fit['samples']} | {error} |"


if __name__ == "__main__":
    named = [Path(name) for name in sys.argv[1:]]
    main(named or sorted((PAGE.parent / "benchmarks").glob("gpu-*.json")))
