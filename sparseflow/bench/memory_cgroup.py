"""A memory cgroup for one process, where this one may make it: it limits private memory and the disk's cache alike."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Of version 1 and 2: what limits memory, and what keeps it from going to swap instead. The first has to be there.
_LIMITS = {
    1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    2: ("memory.max", "memory.swap.max"),
}
_PROCESSES = "cgroup.procs"


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path | None]:
    """A new cgroup for `join`, gone afterwards, when nobody may be in it any more; None where none can be made."""
    made = next((made for version, place in _places() if (made := _made(version, place, limit))), None)
    try:
        yield made
    finally:
        if made is not None:
            made.rmdir()


def join(cgroup: Path) -> None:
    """Puts this process into it. What it has in memory already stays with the group that it was in."""
    (cgroup / _PROCESSES).write_text("0")


def _made(version: int, place: Path, limit: int) -> Path | None:
    made = place / f"sparseflow-bench-{os.getpid()}"
    try:
        made.mkdir()
    except OSError:
        return None
    try:
        memory, swap = (made / name for name in _LIMITS[version])
        if not memory.exists():
            raise FileNotFoundError(memory)
        memory.write_text(str(limit))
        if swap.exists():
            swap.write_text(str(limit if version == 1 else 0))
        # Whether a process may go there is known once one has.
        subprocess.run(["sh", "-c", f'echo 0 > "{made / _PROCESSES}"'], check=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        made.rmdir()
        return None
    return made


def _places() -> Iterator[tuple[int, Path]]:
    """Where one could be made, with the version of cgroups there: below this process's own, in version 2 beside it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        version = 1 if controllers else 2
        if version == 1 and "memory" not in controllers.split(","):
            continue
        for root, point in _mounted(mounts, version):
            if path.startswith(root):
                own = Path(point) / path.removeprefix(root).lstrip("/")
                # In version 2, a group with processes of its own hands no memory to groups below.
                beside = [own.parent] if version == 2 and own != Path(point) else []
                yield from ((version, place) for place in (*beside, own))


def _mounted(mounts: list[list[str]], version: int) -> Iterator[tuple[str, str]]:
    # Fields of proc_pid_mountinfo(5): root and mount point, and after a dash the kind, the source, the options.
    for fields in mounts:
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        if kind == ("cgroup" if version == 1 else "cgroup2") and (version == 2 or "memory" in options.split(",")):
            yield fields[3], fields[4]
