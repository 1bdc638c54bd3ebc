"""The plan of a round: recorded and replayed, or made on one rank and followed by all."""

from __future__ import annotations

from torch import nn

from sparseflow.hardware import backends
from sparseflow.hardware.plan import Plan, plan
from sparseflow.hardware.sample import Sample
from sparseflow.masks.masks import Masks
from sparseflow.ranks import Ranks
from sparseflow.training.records import Records


def plan_round(
    model: nn.Module,
    masks: Masks,
    backend: str,
    sample: Sample | None,
    records: Records,
    index: int,
    launched: Ranks,
) -> Plan:
    """The plan on record for the round, else a new one, which is then recorded."""
    recorded = records.plan(index)
    if recorded is not None:
        _check_replay(recorded, masks, index)
        chosen = recorded
    else:
        # Timings differ from rank to rank: the plan is made on one, and followed by all.
        made = launched.first(lambda: plan(model, masks, sample, backend, crossovers=False).to_json())
        chosen = Plan.from_json(made)
    records.keep_plan(index, chosen)
    return chosen


def _check_replay(recorded: Plan, masks: Masks, index: int) -> None:
    wanted = {recorded.row(name).backend for name in masks}
    missing = wanted - set(backends.available())
    if missing:
        raise ValueError(
            f"round {index} was planned for backend {', '.join(sorted(missing))}, which is not installed here "
            f"(available: {', '.join(backends.available())}); install it, or plan anew with --replan, which gives up "
            "bit-identity"
        )
