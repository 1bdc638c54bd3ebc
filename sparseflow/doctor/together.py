"""What only the processes of a launch find out together: do they see the same folder, time, versions and recipe?"""

from __future__ import annotations

import hashlib
import json
import platform
import secrets
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparseflow.doctor.finding import Finding, ok, wrong
from sparseflow.doctor.folder import existing
from sparseflow.doctor.versions import CARRYING, installed
from sparseflow.ranks import Ranks
from sparseflow.recipes import Recipe

_CLOCK_SECONDS = 1.0
# Another node may learn of a new file a moment later.
_SEE_SECONDS = 3.0


def check_token(ranks: Ranks, out: Path) -> Finding:
    """Whether every rank sees a file that rank 0 writes."""
    place = Path(ranks.broadcast(str(existing(out))))
    path = place / ranks.broadcast(f".sparseflow-doctor-{secrets.token_hex(8)}")
    token = ranks.broadcast(secrets.token_hex(8))
    trouble = ranks.first(lambda: _write(path, token))
    if trouble:
        return wrong("shared", f"--out: rank 0 cannot write into {place}: {trouble}; choose another --out")
    blind = [rank for rank, sees in enumerate(ranks.gather(_sees(path, token))) if not sees]
    ranks.first(lambda: path.unlink(missing_ok=True))
    if blind:
        return wrong(
            "shared",
            f"--out: {_ranks(blind, ranks)} not see what rank 0 writes into {place}; give a folder that all share",
        )
    return ok("shared", f"{ranks.world} ranks see what rank 0 writes into {place}")


def check_clocks(ranks: Ranks) -> Finding:
    """How far the ranks' clocks are apart. Of three times, the best: waiting can only add to what is there."""
    best: list[float] = []
    for _ in range(3):
        ranks.barrier()
        times = ranks.gather(time.time())
        offsets = [moment - times[0] for moment in times]
        best = min(best or offsets, offsets, key=_spread)
    text = f"the ranks' clocks are {_spread(best):.2f} s apart"
    if _spread(best) < _CLOCK_SECONDS:
        return ok("clocks", text)
    far = max(range(len(best)), key=lambda rank: abs(best[rank]))
    expected = f"expected less than {_CLOCK_SECONDS:.0f} s"
    return wrong("clocks", f"{text}, {expected}; rank {far} is {best[far]:+.1f} s from rank 0: sync the nodes' clocks")


def check_same(ranks: Ranks, what: str, mine: dict[str, Any], do: str) -> Finding:
    """Whether all ranks hold the same under each key."""
    everybody = ranks.gather(mine)
    first = everybody[0]
    for rank, other in enumerate(everybody):
        keys = [key for key in first if other.get(key) != first[key]]
        if keys:
            there = ", ".join(f"{key} {other.get(key)} instead of {first[key]}" for key in keys)
            return wrong(what, f"rank {rank} has {there}; {do}")
    return ok(what, f"the same on {ranks.world} ranks")


def check_gpus(ranks: Ranks, seen: int, here: int) -> Finding:
    """Whether every rank sees a GPU for itself and its neighbours, or none of them sees any."""
    everybody: Sequence[list[Any]] = ranks.gather([socket.gethostname(), seen, here])
    if len({bool(gpus) for _, gpus, _ in everybody}) > 1:
        blind = next((rank, host) for rank, (host, gpus, _) in enumerate(everybody) if not gpus)
        return wrong("gpus", f"rank {blind[0]} on {blind[1]} sees no GPU and others do; give every node its GPUs")
    for rank, (host, gpus, processes) in enumerate(everybody):
        if gpus and processes > gpus:
            return wrong("gpus", f"{host} (rank {rank}) has {gpus} GPUs for {processes} processes; start {gpus} there")
    hosts = len({host for host, _, _ in everybody})
    machines = "1 machine" if hosts == 1 else f"{hosts} machines"
    return ok("gpus", f"{ranks.world} ranks on {machines}, {'a GPU each' if seen else 'on the CPU'}")


def versions() -> dict[str, str | None]:
    """What has to be the same on all ranks."""
    packages = {name: installed(name) for name in ("sparseflow", "numpy", *CARRYING)}
    return {"python": platform.python_version(), **packages}


def recipe_digest(recipe: Recipe) -> str:
    """The sha256 of a recipe's content."""
    return hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _write(path: Path, token: str) -> str | None:
    try:
        path.write_text(token)
    except OSError as error:
        return error.strerror
    return None


def _sees(path: Path, token: str) -> bool:
    deadline = time.monotonic() + _SEE_SECONDS
    while True:
        try:
            if path.read_text() == token:
                return True
        except OSError:
            # Not there, or not ours to read; a moment later it may be.
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def _spread(offsets: Sequence[float]) -> float:
    return max(offsets) - min(offsets)


def _ranks(numbers: Sequence[int], ranks: Ranks) -> str:
    return f"rank {', '.join(map(str, numbers))} of {ranks.world} {'do' if len(numbers) > 1 else 'does'}"
