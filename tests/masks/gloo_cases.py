"""Sharded pruning over real processes: run as a script, it prints what each rank of each world size found, as JSON."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from forked import launch
from score_cases import COUNT, FILLS, by_sort, split
from slicings import SLICINGS
from torch import Tensor

from sparseflow.masks import Scores, Slice, assemble, cut, cut_evenly, prune_slices
from sparseflow.ranks import ALONE, Launched, Ranks, current

WORLDS = (1, 2, 3, 4)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class CountingRanks(Launched):
    """Counts the bytes that this rank gives to collectives."""

    traffic = 0

    def sum(self, counts: Tensor) -> Tensor:
        self.traffic += counts.numel() * counts.itemsize
        return super().sum(counts)

    def gather(self, value: Any) -> list[Any]:
        self.traffic += len(json.dumps(value))
        return super().gather(value)


def work(ranks: Ranks) -> dict[str, Any]:
    """What one rank found: the cases that differ from the stable sort, a whole mask's digest, an error, the traffic."""
    found = dict(_cases(ranks))
    return {
        "cases": len(found),
        "wrong": [name for name, right in found.items() if not right],
        "mask": _digest(ranks),
        "error": _not_finite(ranks),
        "traffic": [] if ranks is ALONE else [_traffic(size) for size in (1_000, 50_000)],
    }


def _cases(ranks: Ranks) -> Iterator[tuple[str, bool]]:
    """Yields each case, whether the slices of this rank equal the reference."""
    choose = random.Random(0)
    for fill, make in FILLS.items():
        for dtype in DTYPES:
            generator = torch.Generator().manual_seed(0)
            weights = split(make(generator, dtype))
            alive = torch.rand(COUNT, generator=generator) < 0.6
            # The ends are the same for all dtypes.
            for drop in (0, 1, COUNT // 3, COUNT - 1, COUNT) if dtype is torch.float32 else (COUNT // 3,):
                slicing, survivors = choose.choice(list(SLICINGS)), choose.choice([None, alive])
                slices = SLICINGS[slicing](weights, ranks)
                kept, expected = _prune(slices, weights, survivors, drop, ranks)
                right = all(torch.equal(own.values, whole.values) for own, whole in zip(kept, cut(expected, slices)))
                yield f"{fill}, {dtype}, {slicing}, {drop}, {survivors is None}", right and len(kept) == len(slices)


def _prune(
    slices: list[Slice], weights: dict[str, Tensor], survivors: Tensor | None, drop: int, ranks: Ranks
) -> tuple[list[Slice], dict[str, Tensor]]:
    shapes = {name: weight.shape for name, weight in weights.items()}
    alive = torch.ones(COUNT, dtype=torch.bool) if survivors is None else survivors
    left = int(alive.sum())
    drop = min(drop, left)
    masks = None if survivors is None else cut(split(survivors), slices)
    # A rate is below 1, so that nothing is left only below half a weight.
    how: dict[str, float] = {"density": 1e-9} if drop == left else {"rate": drop / left}
    kept = prune_slices(slices, shapes, masks=masks, floor=0, ranks=ranks, **how)  # type: ignore[arg-type]
    return kept, split(by_sort(Scores(weights, absolute=True), alive, drop))


def _digest(ranks: Ranks) -> str:
    weights = split(FILLS["ties"](torch.Generator().manual_seed(0), torch.float32))
    shapes = {name: weight.shape for name, weight in weights.items()}
    kept = prune_slices(SLICINGS["dealt"](weights, ranks), shapes, density=0.3, allocation="erk", floor=1, ranks=ranks)
    return assemble(kept, shapes, ranks).digest


def _not_finite(ranks: Ranks) -> str:
    weights = {"good": torch.ones(9), "bad": torch.ones(9)}
    weights["bad"][8] = torch.nan
    try:
        prune_slices(cut_evenly(weights, ranks), {"good": (9,), "bad": (9,)}, density=0.5, ranks=ranks)
    except ValueError as error:
        return str(error)
    return ""


def _traffic(size: int) -> int:
    """Bytes of the collectives for 12 parameters of this size."""
    weights = {f"layer{number}.weight": torch.arange(float(size)) for number in range(12)}
    ranks = CountingRanks()
    shapes = {name: (size,) for name in weights}
    prune_slices(cut_evenly(weights, ranks), shapes, density=0.2, floor=0, ranks=ranks)
    return ranks.traffic


def main(folder: Path) -> None:
    print(json.dumps({world: launch(world, folder, lambda rank: work(current())) for world in WORLDS}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
