"""Compiles the Triton kernels for GPUs that need not be there, and checks and prints what came out.

    python tools/compile_matrix.py                    default configurations, for all chips
    python tools/compile_matrix.py --all              every configuration that is ever tried: some twenty minutes
    python tools/compile_matrix.py --target sm_90     for one chip
    python tools/compile_matrix.py --write            also fills the table in docs/gpu.md

Exit status 1 where a kernel spills registers, takes more shared memory than there is, reads rows in small pieces, or
does without tensor cores where it should not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import time
from functools import cache
from pathlib import Path

from sparseflow_kernels.triton_compile import CHIPS, Compiled, compile_for, faults
from sparseflow_kernels.triton_compile_cases import Case, cases

PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
MARKS = ("<!-- compile matrix -->", "<!-- /compile matrix -->")
WORKERS = 2

# Chip, whether every configuration, number of the case, number of its launch.
_Job = tuple[str, bool, int, int]


def main(arguments: list[str]) -> int:
    """Compiles, prints, returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--target", action="append", choices=list(CHIPS))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    chips = options.target or list(CHIPS)
    jobs = [job for chip in chips for job in _jobs(chip, options.all)]
    start = time.perf_counter()
    failed, rows = 0, {}
    # Where Triton is not told, it warns that its default will change.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        for job, compiled, wrong in pool.imap(_compile, jobs):
            rows[job] = compiled
            failed += bool(wrong)
            if wrong or not options.all:
                print(f"{job[0]:<7} {_label(job):<60} {_cell(compiled)}", *wrong, sep="  ", flush=True)
    seconds = time.perf_counter() - start
    print(f"compiled {len(jobs)} kernels for {', '.join(chips)} in {seconds:.0f} s; {failed} failed")
    if options.write:
        _write(table({job: row for job, row in rows.items() if _case(job).is_default}))
    return 1 if failed else 0


def table(rows: dict[_Job, Compiled]) -> str:
    """Registers and shared memory by kernel and chip, in Markdown."""
    chips = list(dict.fromkeys(job[0] for job in rows))
    cells: dict[str, dict[str, str]] = {}
    for job, compiled in rows.items():
        kernel = f"`{_launch_name(job)}` | {_what(job)}"
        cells.setdefault(kernel, {})[job[0]] = _cell(compiled)
    lines = [f"| kernel | for | {' | '.join(chips)} |", "|---|---|" + "---|" * len(chips)]
    lines += [f"| {kernel} | {' | '.join(found.get(chip, '') for chip in chips)} |" for kernel, found in cells.items()]
    return "\n".join(lines)


def _jobs(chip: str, every: bool) -> list[_Job]:
    """Each launch that compiles to something of its own, once."""
    found: dict[str, _Job] = {}
    for number, case in enumerate(_cases(chip, every)):
        for place, launch in enumerate(case.launches()):
            found.setdefault(launch.key, (chip, every, number, place))
    return list(found.values())


def _compile(job: _Job) -> tuple[_Job, Compiled, list[str]]:
    case = _case(job)
    compiled = compile_for(case.launches()[job[3]], case.chip)
    # Launches behind the first add what it left.
    expected = (case.tensor_core, case.itemsize) if job[3] == 0 else (False, 0)
    return job, compiled, faults(compiled, case.chip, *expected)


@cache
def _cases(chip: str, every: bool) -> list[Case]:
    return cases(chip, every)


def _case(job: _Job) -> Case:
    return _cases(job[0], job[1])[job[2]]


@cache
def _launch_name(job: _Job) -> str:
    return _case(job).launches()[job[3]].name


def _what(job: _Job) -> str:
    case = _case(job)
    return f"{case.kernel}, {case.dtype}"


def _label(job: _Job) -> str:
    return f"{_launch_name(job)} {_what(job)} {_case(job).config}"


def _cell(compiled: Compiled) -> str:
    """E.g. "104 registers, 72 KiB, wgmma"."""
    parts = [f"{compiled.registers} registers"]
    if compiled.stack:
        parts.append(f"{compiled.stack} bytes of stack")
    if compiled.shared:
        parts.append(f"{compiled.shared / 1024:.0f} KiB")
    return ", ".join([*parts, *([compiled.tensor_core] if compiled.tensor_core else [])])


def _write(text: str) -> None:
    first, last = MARKS
    page = PAGE.read_text()
    filled = re.sub(rf"{first}\n.*?{last}", lambda _: f"{first}\n{text}\n{last}", page, flags=re.DOTALL)
    PAGE.write_text(filled)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
