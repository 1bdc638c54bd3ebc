"""Pruning at initialisation: prune once, before any training, then train what is left.

SNIP, GraSP and SynFlow were made for it; Frankle et al., 2021 (arXiv:2009.08576), is what to expect of it: less than of
magnitude after training, and no less of the same mask shuffled within its layers, or with newly drawn weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from sparseflow.files import Ticket
from sparseflow.masks.allocation import Allocation
from sparseflow.masks.criteria import Criterion
from sparseflow.masks.floors import Floor
from sparseflow.masks.importance import Importance
from sparseflow.masks.patterns import Pattern, Unstructured
from sparseflow.training.pruning import ParamFilter, Pruning
from sparseflow.training.records import Records
from sparseflow.training.search import train_rounds
from sparseflow.training.trainer import Trainer


def prune_at_init(
    trainer: Trainer,
    *,
    density: float | None = None,
    rate: float | None = None,
    criterion: str | Criterion = "snip",
    importance: Importance | None = None,
    pattern: Pattern = Unstructured(),
    allocation: Allocation = "global",
    rates: Mapping[str, float] | None = None,
    floor: Floor | None = None,
    param_filter: ParamFilter | None = None,
    backend: str = "auto",
    batches: int = 1,
    seed: int = 0,
    records: Records | None = None,
) -> Ticket:
    """Prunes the trainer's model as it was initialised, trains it, and returns its ticket: round 1, without a round 0.

    Criteria look at the trainer's first `batches`, and at its loss. With `records`, which must be made with `first=1`,
    a stopped run resumes by the same call. The rest as in `imp`.
    """
    records = records or Records(None, first=1)
    if records.first != 1:
        raise ValueError(f"records: expected Records(folder, first=1), for round 0 is not trained, got {records.first}")
    pruning = Pruning(
        1,
        rate=rate,
        density=density,
        criterion=criterion,
        importance=importance,
        pattern=pattern,
        allocation=allocation,
        rates=rates,
        floor=floor,
        param_filter=param_filter,
        seed=seed,
    )
    (ticket,) = train_rounds(trainer, pruning, records, algorithm="prune-at-init", backend=backend, batches=batches)
    return ticket
