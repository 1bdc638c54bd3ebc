"""plan, sparsify, remask and densify of a streamed model: its layers stay, and its store gets the masks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparseflow.hardware import backends
from sparseflow.hardware.choice import Candidate, Plan, Row
from sparseflow.hardware.streaming.execution import Stream
from sparseflow.hardware.workload import Workload

BACKEND = "stream"


def stream_rows(works: Mapping[str, Workload], backend: str) -> tuple[Row, ...]:
    """A row for each weight; the cost is modelled where it is known how many rows a layer gets.

    `ValueError` for the name of another backend.
    """
    if backend not in ("auto", BACKEND):
        raise ValueError(
            f"backend {backend!r} cannot run a streamed model, whose weights are in a store: expected 'auto' or "
            f"{BACKEND!r}"
        )
    found = backends.get(BACKEND)
    rows = []
    for name, work in works.items():
        candidates = (Candidate(BACKEND, found.cost(work), None),) if work.rows else ()
        why = "its weights are in a store"
        rows.append(Row(name, work.shape, work.density, BACKEND, found.layout(work), why, candidates))
    return tuple(rows)


def sparsify_stream(stream: Stream, masks: Mapping[str, Tensor], plan: Plan | None) -> None:
    """Gives the store these masks. `ValueError` where it has masks already, or the plan is for another backend."""
    already = [name for name in masks if stream.store.masked(name)]
    if already:
        raise ValueError(f"already sparse: {', '.join(already)}; use remask for new masks, or densify first")
    for name in masks if plan is not None else ():
        assert plan is not None
        if (row := plan.row(name)).backend != BACKEND:
            raise ValueError(
                f"the plan has {name!r} on backend {row.backend!r}, and the model is streamed: make a new plan, or "
                "resume with --replan"
            )
    stream.remask(masks)


def remask_stream(stream: Stream, masks: Mapping[str, Tensor]) -> None:
    """Gives the store other masks; optimizer state follows. `ValueError` for a weight that has none."""
    for name in masks:
        if not stream.store.masked(name):
            raise ValueError(f"{name!r} is dense; sparsify it before remask")
    stream.remask(masks)
