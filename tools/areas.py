"""Runs the test areas one after the other and prints the time of each beside its allotment.

    python tools/areas.py           all of them
    python tools/areas.py lint      some of them

Exit status 1 where one failed. Times are for two quiet cores; being over is shown, and is no failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
ALLOTTED = {
    "lint": 60,
    "foundation": 90,
    "cpu": 80,
    "distributed": 140,
    "triton": 120,
    "stream": 50,
    "algorithms": 40,
}
SOURCES = ["sparseflow", "kernels", "launchers", "tests", "tools"]


def lint() -> bool:
    """ruff, import-linter, mypy --strict and pyright; the two slow ones side by side."""
    slow = [_start("pyright"), _start("mypy")]
    quick = [
        _run("ruff", "check", "--quiet", *SOURCES),
        _run("ruff", "format", "--check", "--quiet", *SOURCES),
        _run("lint-imports", "--no-logo"),
    ]
    return all([process.wait() == 0 for process in slow] + quick)


# Whatever is not named here belongs to the foundation.
CPU = [
    "tests/kernels",
    "tests/hardware/test_attention.py",
    "tests/hardware/test_backends.py",
    "tests/hardware/test_flow.py",
    "tests/hardware/test_fused_layers.py",
    "tests/hardware/test_routing.py",
    "tests/hardware/test_timings.py",
    "tests/test_bench.py",
    "tests/test_third_party.py",
]


DISTRIBUTED = ["tests/distributed", "tests/hardware/test_traffic.py", "tests/masks/test_sharded.py"]

TRITON = "tests/triton"
STREAM = ["tests/streaming", "tests/wafer"]
ALGORITHMS = ["tests/algorithms"]


def foundation() -> bool:
    """Masks, hardware, files, training, data, command line and documentation."""
    elsewhere = (*CPU, *DISTRIBUTED, TRITON, *STREAM, *ALGORITHMS)
    return _tests("tests", *(f"--ignore={path}" for path in elsewhere))


def cpu() -> bool:
    """The sparse CPU kernels, routing, every backend's conformance, the bench, and a backend of somebody else's."""
    return _tests(*CPU)


def distributed() -> bool:
    """Launches of several processes."""
    return _tests(*DISTRIBUTED)


def triton() -> bool:
    """The GPU kernels under Triton's interpreter and, in processes of their own, through its compilers."""
    interpreted = _tests(f"{TRITON}/interpreted", TRITON_INTERPRET="1")
    return _tests(f"{TRITON}/compiled", TRITON_INTERPRET="0") and interpreted


def stream() -> bool:
    """Weight streaming: the store, the emulator and the model of the machine."""
    return _tests(*STREAM)


def algorithms() -> bool:
    """Every algorithm against its oracles."""
    return _tests(*ALGORITHMS)


AREAS = {
    "lint": lint,
    "foundation": foundation,
    "cpu": cpu,
    "distributed": distributed,
    "triton": triton,
    "stream": stream,
    "algorithms": algorithms,
}


def main(names: list[str]) -> int:
    """Runs the areas named, prints the table, returns the exit status."""
    unknown = [name for name in names if name not in AREAS]
    if unknown:
        print(f"no area {', '.join(unknown)}; available: {', '.join(AREAS)}", file=sys.stderr)
        return 2
    results = {}
    for name in names or AREAS:
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        passed = AREAS[name]()
        results[name] = (passed, time.perf_counter() - start)
    print(f"\n{'area':<12} {'seconds':>8} {'allotted':>9}")
    for name, (passed, seconds) in results.items():
        over = "  over" if seconds > ALLOTTED[name] else ""
        print(f"{name:<12} {seconds:>8.1f} {ALLOTTED[name]:>9}  {'passed' if passed else 'FAILED'}{over}")
    failed = sum(not passed for passed, _ in results.values())
    print(f"areas: {len(results) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def _tests(*arguments: str, **environment: str) -> bool:
    return _run("pytest", "-n", "2", "--dist", "worksteal", *arguments, **environment)


def _command(name: str, arguments: tuple[str, ...]) -> list[str]:
    return [str(BIN / name), *arguments]


def _run(name: str, *arguments: str, **environment: str) -> bool:
    # One thread a process: pytest runs two, and torch's pools would fight over the cores.
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **environment}
    return subprocess.run(_command(name, arguments), env=variables).returncode == 0


def _start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(_command(name, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
