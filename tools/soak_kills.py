"""Every crash point with everybody it may kill, and 200 kills at random: the resumed search against the whole one.

PYTHONPATH=tests:tests/distributed python tools/soak_kills.py [KILLS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from crashing import POINTS, STREAM_POINTS, Work, launch, random_kills, search, search_streamed
from leavings import left_in

# Kills of one search before it is let through, and the seconds within which each comes.
EACH = 10
SECONDS = 0.5


def main(kills: int) -> int:
    """Prints the figures that docs/reliability.md has a table of."""
    start, same = time.perf_counter(), True
    for world, victims, work in ((1, [(0,)], search), (1, [(0,)], search_streamed), (2, [(0,), (1,), (0, 1)], search)):
        with tempfile.TemporaryDirectory() as place:
            soak = Soak(Path(place), world, work)
            points = [(name, killed) for name in soak.points for killed in victims]
            differing = [point for point in points if not soak.same_after_point(*point)]
            hits, wrong = soak.same_after_kills(kills // 2)
        what = f"{world} at once{' on sf.stream' if work is search_streamed else ''}"
        print(f"{what}: {len(points)} points, of which {len(differing)} differ or were not reached {differing}")
        print(f"{what}: {hits} random kills, after which {wrong} searches differ", flush=True)
        same = same and not differing and not wrong
    print(f"{time.perf_counter() - start:.0f} s")
    return 0 if same else 1


class Soak:
    """Searches of so many processes, and what one leaves that nobody kills."""

    def __init__(self, place: Path, world: int, work: Work) -> None:
        self.place, self.world, self.work = place, world, work
        self.points = STREAM_POINTS if work is search_streamed else POINTS
        if not launch(place / "whole", world, work=work).well:
            raise RuntimeError(f"the search does not run through on {world} processes: {log(place / 'whole')}")
        self.whole = left_in(place / "whole")

    def same_after_point(self, name: str, victims: tuple[int, ...]) -> bool:
        """Whether the point was reached, and the search then ended as the whole one."""
        folder = self.place / f"{name}-{len(victims)}-{victims[0]}"
        killed = launch(folder, self.world, self.points[name].on(*victims), self.work)
        return killed.reached and not killed.well and self._ends_the_same(folder)

    def same_after_kills(self, kills: int) -> tuple[int, int]:
        """How many kills hit, and how many searches differ after them."""
        hits = wrong = seed = 0
        while hits < kills:
            folder = self.place / f"random-{seed}"
            hits += random_kills(folder, self.world, min(EACH, kills - hits), seed, SECONDS, self.work)
            wrong += not self._ends_the_same(folder)
            seed += 1
        return hits, wrong

    def _ends_the_same(self, folder: Path) -> bool:
        return launch(folder, self.world, work=self.work).well and left_in(folder) == self.whole


def log(folder: Path) -> str:
    """What rank 0 said."""
    return folder.with_suffix(".log-0").read_text()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
