"""What takes longer than the tests: the demo from nothing, for seeds of one's own, against the promises about it.

python tools/soak.py [SEEDS]        e.g. 11,12
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

BIN = Path(sys.executable).parent
MINUTES = 4


def main(seeds: str) -> int:
    """Runs the demo and prints each promise with what was found."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        start = time.perf_counter()
        subprocess.run([BIN / "sparseflow", "run", "lenet", "--out", out, "--set", f"seeds=[{seeds}]"], check=True)
        seconds = time.perf_counter() - start
        result = json.loads((out / "result.json").read_text())
    promises = [*_gaps(result), (f"demo in at most {MINUTES} minutes", f"{seconds:.0f} s", seconds <= 60 * MINUTES)]
    for promise, found, kept in promises:
        print(f"{'met   ' if kept else 'MISSED'}  {promise:<44} {found}")
    return 0 if all(kept for _, _, kept in promises) else 1


def _gaps(result: dict[str, Any]) -> list[tuple[str, str, bool]]:
    last = result["verdict"]["round"]
    ticket = _accuracy(result["rounds"], last)
    dense = _accuracy(result["rounds"], 0)
    reinit, shuffle = (
        _accuracy([one for one in result["controls"] if one["kind"] == kind], last) for kind in ("reinit", "shuffle")
    )
    return [
        ("ticket − reinit ≥ 0.8 points", f"{ticket - reinit:+.2f}", ticket - reinit >= 0.8),
        ("ticket − shuffle > 0 points", f"{ticket - shuffle:+.2f}", ticket - shuffle > 0),
        ("ticket − dense ≥ 0 points", f"{ticket - dense:+.2f}", ticket - dense >= 0),
        ("the verdict is: ticket", result["verdict"]["value"], result["verdict"]["value"] == "ticket"),
    ]


def _accuracy(networks: list[dict[str, Any]], number: int) -> float:
    return mean(100 * one["test_accuracy"] for one in networks if one["round"] == number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "1,2"))
