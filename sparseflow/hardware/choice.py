"""What was planned: the backend of each layer with its reason, as data, as JSON and as a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from sparseflow.hardware.backends import Cost


@dataclass(frozen=True)
class Candidate:
    """One backend for one layer: its cost in seconds a step, or why it cannot run."""

    backend: str
    cost: Cost | None
    reason: str | None

    def to_json(self) -> dict[str, object]:
        """Plain data; `seconds` is the sum over the parts of the cost."""
        return {**asdict(self), "seconds": None if self.cost is None else self.cost.seconds}


@dataclass(frozen=True)
class Row:
    """What was chosen for one weight, and what the alternatives would have cost.

    `relus` names the nn.ReLU modules whose work the layer does itself; `feature_major` says that its output keeps the
    batch contiguous. `crossover` is the density at which the runner-up would win, None where it never does.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    backend: str
    layout: str
    reason: str
    candidates: tuple[Candidate, ...] = ()
    relus: tuple[str, ...] = ()
    feature_major: bool = False
    crossover: float | None = None

    @property
    def relu(self) -> bool:
        """Whether the layer applies max(0, y) to its own output."""
        return bool(self.relus)


@dataclass(frozen=True)
class Plan:
    """Which backend runs each layer, and why. State of a run: recorded once, replayed on resume and on every rank."""

    rows: tuple[Row, ...]
    left_dense: Mapping[str, str]

    def row(self, name: str) -> Row:
        """The row of a weight. `ValueError` where the plan does not know it."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"the plan has no layer {name!r}; it knows: {', '.join(row.name for row in self.rows)}")

    @property
    def backends(self) -> dict[str, str]:
        """Weight name → backend."""
        return {row.name: row.backend for row in self.rows}

    def to_json(self) -> dict[str, object]:
        """Plain data for `result.json`, checkpoints and tickets."""
        rows = [{**asdict(row), "candidates": [one.to_json() for one in row.candidates]} for row in self.rows]
        return {"rows": json.loads(json.dumps(rows)), "left_dense": dict(self.left_dense)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Plan:
        """The inverse of `to_json`. `ValueError` for anything else."""
        try:
            rows = tuple(_row(row) for row in data["rows"])  # type: ignore[attr-defined]
            left = {str(key): str(value) for key, value in data["left_dense"].items()}  # type: ignore[attr-defined]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected a plan as written by sparseflow, got something else ({error!r})") from None
        return cls(rows, left)

    def __str__(self) -> str:
        lines = [_line("layer", "density", "backend", "why")]
        for row in self.rows:
            lines.append(_line(row.name, f"{row.density:.2%}", row.backend, row.reason))
            lines.extend(_candidate_line(candidate) for candidate in row.candidates)
        lines.extend(_line(name, "100%", "(dense)", reason) for name, reason in self.left_dense.items())
        return "\n".join([*lines, self._summary()])

    def _summary(self) -> str:
        counts = Counter(row.backend for row in self.rows)
        parts = [", ".join(f"{count} of {len(self.rows)} layers on {name}" for name, count in counts.most_common())]
        chained = sum(row.feature_major for row in self.rows)
        fused = [row.name for row in self.rows if row.relu]
        if chained:
            parts.append(f"{_outputs(chained)} feature-major to the next layer")
        if fused:
            parts.append(f"{_outputs(len(fused))} rectified inside the layer")
        return "; ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _outputs(count: int) -> str:
    return "1 output" if count == 1 else f"{count} outputs"


def _row(data: Mapping[str, object]) -> Row:
    row = Row(**data)  # type: ignore[arg-type]
    candidates = tuple(
        Candidate(c["backend"], None if c["cost"] is None else Cost(**c["cost"]), c["reason"])  # type: ignore[index]
        for c in row.candidates
    )
    return replace(row, shape=tuple(row.shape), candidates=candidates, relus=tuple(row.relus))


def _line(name: str, density: str, backend: str, why: str) -> str:
    return f"{name:<40} {density:>8}  {backend:<14} {why}"


def _candidate_line(candidate: Candidate) -> str:
    if candidate.cost is None:
        return _line("", "", "  " + candidate.backend, f"cannot run: {candidate.reason}")
    how = "measured" if candidate.cost.measured else "modelled"
    return _line("", "", "  " + candidate.backend, f"{duration(candidate.cost.seconds)} {how}")
