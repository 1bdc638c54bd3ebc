"""Every crash point of a store, and 200 kills at random: the resumed training against the whole one.

PYTHONPATH=tests:tests/streaming python tools/soak_stores.py [KILLS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from crashing_stores import POINTS, Point, is_a_commit, launch, left_in, random_kills

# Kills of one training before it is let through, and the seconds within which each comes.
EACH = 10
SECONDS = 0.06


def main(kills: int) -> int:
    """Prints what was found; exit status 1 where anything differs."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        if launch(whole).status != 0:
            raise RuntimeError("the training does not run through")
        expected = left_in(whole)
        differing = [
            name for number, name in enumerate(POINTS) if not _same(Path(place) / f"{number}", POINTS[name], expected)
        ]
        hits = wrong = seed = 0
        while hits < kills:
            folder = Path(place) / f"random-{seed}"
            hits += random_kills(folder, min(EACH, kills - hits), seed, SECONDS)
            wrong += launch(folder).status != 0 or left_in(folder) != expected
            seed += 1
    print(f"{len(POINTS)} points, of which {len(differing)} differ or were not reached {differing}")
    print(f"{hits} random kills, after which {wrong} of {seed} trainings differ")
    print(f"{time.perf_counter() - start:.0f} s")
    return 1 if differing or wrong else 0


def _same(folder: Path, point: Point, expected: dict[str, object]) -> bool:
    killed = launch(folder, point)
    well = killed.reached and is_a_commit(folder) and launch(folder).status == 0
    return well and left_in(folder) == expected


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
