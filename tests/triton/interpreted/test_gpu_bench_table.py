"""The table of docs/gpu.md: what was measured, else what is modelled, and never one for the other."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from sparseflow.bench.figure import Figure
from sparseflow.bench.gpu.fit import Fit

ROOT = Path(__file__).parents[3]
PAGE = "# Page\n<!-- gpu table: written by a tool -->\nold\n<!-- /gpu table -->\nend\n"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_table", ROOT / "tools" / "gpu_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_holds_the_table_that_the_tool_writes(tool: ModuleType) -> None:
    files = sorted((ROOT / "docs" / "benchmarks").glob("gpu-*.json"))
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert tool.filled(page, [json.loads(file.read_text()) for file in files]) == page


def test_every_modelled_figure_says_so(tool: ModuleType) -> None:
    page = tool.filled(PAGE, [])
    rows = [
        line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| fp32") or line.startswith("| bf16")
    ]
    assert len(rows) == 12 and page.endswith("<!-- /gpu table -->\nend\n") and "old" not in page
    # All but dtype, sparsity and promise.
    assert all(re.match(r" modelled \d+\.\d", cell) for row in rows for cell in row[2:6])


def test_a_measured_run_is_shown_as_measured_and_what_is_wrong_without_a_figure(tool: ModuleType) -> None:
    figures = [
        Figure("fp32 step at 99 % sparse: dense / ours", "x", 12.0, True, (9.0,) * 9),
        Figure("bf16 step at 99 % sparse: dense / ours", "x", 1.2, True, (), "row 3 is off"),
        Figure("bf16 step at 99.9 % sparse: dense / ours", "x", 5.0, True, (), absent="not reached in this run"),
    ]
    machine = {
        "gpu": "Chip 9",
        "torch": "2.13.0",
        "triton": "3.7.1",
        "cuda": "13.0",
        "hip": None,
        "driver_version": "1.2",
    }
    run = {
        "machine": machine,
        "skipped": ["kernels-wide"],
        "figures": [figure.to_json() for figure in figures],
        "fits": [Fit("eta_gather_fp32", 0.5, 12, 1.1).to_json()],
    }
    page = tool.filled(PAGE, [run])
    assert "modelled" not in page and "Chip 9, driver 1.2, torch 2.13.0, triton 3.7.1, cuda 13.0" in page
    assert "| fp32 step at 99 % sparse: dense / ours | 9.00 [9.00, 9.00] x | ≥ 12, **missed** |" in page
    assert "| bf16 step at 99 % sparse: dense / ours | **wrong result**: row 3 is off | ≥ 1.2 |" in page
    assert "not measured: not reached in this run" in page and "kernels-wide" in page
    assert "| `eta_gather_fp32` | 0.500 | 12 | 1.10 |" in page
