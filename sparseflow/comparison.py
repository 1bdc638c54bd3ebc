"""Two runs held against each other: did they see the same data, keep as many weights, and the same ones?

Rounding alone, as another number of processes brings, moves weights across the threshold: the counts stay, the masks
come apart. So the overlap is said, and beside it what masks drawn at random would share.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparseflow.files import Ticket
from sparseflow.runs import Run, load_run, metrics_of, trained_rounds


@dataclass(frozen=True)
class RoundPair:
    """One round of one seed in two runs. `overlap`: weights that both keep, over those that one keeps."""

    seed: int
    round: int
    density: float
    same_data_order: bool
    same_counts: bool
    overlap: float
    test_loss: tuple[float, float]
    test_accuracy: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Every round that both runs have, and their verdicts."""

    rounds: list[RoundPair]
    verdicts: tuple[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        lines = ["seed  round   density  data       counts     masks shared  test accuracy"]
        for one in self.rounds:
            data, counts = ("same" if same else "differs" for same in (one.same_data_order, one.same_counts))
            a, b = one.test_accuracy
            lines.append(
                f"{one.seed:>4}  {one.round:>5}  {one.density:>8.2%}  {data:<9}  {counts:<9}  {one.overlap:>12.2%}  "
                f"{a:.2%} and {b:.2%}"
            )
        lines.append("Masks of so many weights drawn at random would share a fraction as large as the density.")
        lines.append(f"verdicts: {self.verdicts[0]} and {self.verdicts[1]}")
        return "\n".join(lines)


def compare_runs(first: Path, second: Path) -> Comparison:
    """Compares two finished runs. `ValueError` where one is not finished, or their networks have other weights."""
    a, b = load_run(first), load_run(second)
    verdicts = (_verdict(a), _verdict(b))
    seeds = [seed for seed in a.recipe.seeds if seed in b.recipe.seeds]
    if not seeds:
        raise ValueError(f"expected runs with a seed in common, got {a.recipe.seeds} and {b.recipe.seeds}")
    rounds = sorted(set(trained_rounds(a.recipe)) & set(trained_rounds(b.recipe)))
    return Comparison([_pair(a, b, seed, number) for seed in seeds for number in rounds], verdicts)


def overlap(a: Ticket, b: Ticket) -> float:
    """The weights that both tickets keep, over those that the first keeps. `ValueError` for other networks."""
    if {n: m.shape for n, m in a.masks.items()} != {n: m.shape for n, m in b.masks.items()}:
        raise ValueError("expected tickets of the same network, got masks of other names or shapes")
    both = sum(int((mask & b.masks[name]).sum()) for name, mask in a.masks.items())
    return both / sum(int(mask.sum()) for mask in a.masks.values())


def _pair(a: Run, b: Run, seed: int, number: int) -> RoundPair:
    ours, theirs = a.records(seed), b.records(seed)
    x, y = metrics_of(ours.metrics(number)), metrics_of(theirs.metrics(number))
    return RoundPair(
        seed=seed,
        round=number,
        density=x["density"],
        same_data_order=x["data_order"] == y["data_order"],
        same_counts=x["kept"] == y["kept"],
        overlap=overlap(ours.ticket(number), theirs.ticket(number)),
        test_loss=(x["test_loss"], y["test_loss"]),
        test_accuracy=(x["test_accuracy"], y["test_accuracy"]),
    )


def _verdict(run: Run) -> str:
    path = run.folder / "result.json"
    if not path.exists():
        raise ValueError(f"{run.folder}: expected a finished run with result.json; finish it with --resume")
    return str(json.loads(path.read_text())["verdict"]["value"])
