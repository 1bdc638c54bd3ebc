"""The search for lottery tickets: iterative magnitude pruning with rewinding.

Frankle & Carbin, 2019 (arXiv:1803.03635), and for rewinding to step k Frankle et al., 2020 (arXiv:1912.05671):

    1. theta_0 ~ D, m = 1; train to step k and keep theta_k.
    2. Train f(x; m * theta_k) from step k to theta_T.
    3. Prune: of the survivors, the fraction with the smallest |theta_T| leaves m.
    4. Rewind to m * theta_k and go on at 2.

Round r trains the network after r prunings; round 0 is dense.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from torch import nn

from sparseflow import ranks
from sparseflow.files import Ticket
from sparseflow.hardware.sample import Sample
from sparseflow.masks.allocation import Allocation
from sparseflow.masks.criteria import Criterion
from sparseflow.masks.dynamic import Dynamic
from sparseflow.masks.floors import Floor
from sparseflow.masks.importance import Importance
from sparseflow.masks.patterns import Pattern, Unstructured
from sparseflow.training.criteria import Evidence
from sparseflow.training.probe import Batch, Loss
from sparseflow.training.pruning import ParamFilter, Pruning, Start
from sparseflow.training.records import Records
from sparseflow.training.round import Round as Round
from sparseflow.training.search import Rewind as Rewind
from sparseflow.training.search import search, train_rounds
from sparseflow.training.seeds import derive
from sparseflow.training.trainer import Trainer


def rounds(
    model: nn.Module,
    rounds: int,
    *,
    rate: float | None = None,
    density: float | None = None,
    schedule: Literal["constant", "cubic"] = "constant",
    rewind: Rewind = "weights",
    backend: str | None = None,
    sample: Sample | None = None,
    criterion: str | Criterion = "magnitude",
    importance: Importance | None = None,
    pattern: Pattern = Unstructured(),
    allocation: Allocation = "global",
    rates: Mapping[str, float] | None = None,
    floor: Floor | None = None,
    param_filter: ParamFilter | None = None,
    seed: int = 0,
    data: Iterable[Batch] | None = None,
    loss: Loss | None = None,
) -> Iterator[Round]:
    """IMP around one's own training loop: yields `rounds` + 1 networks to train, the first one dense.

        for round in sf.rounds(model, rounds=10, rate=0.2):
            train(round.model)
            round.finish({"accuracy": accuracy})

    Each round needs a fresh optimizer: the parameters are new ones. `rate` prunes that fraction of the survivors
    in each round; `density` says what the last round keeps. `rewind`: "weights" goes back to theta_0 (or to where
    `round.mark_rewind_point()` was called in round 0); "learning_rate" (Renda et al., 2020, arXiv:2003.02389) and
    "none" keep the trained weights, and differ in the learning rate that one then uses. With `sample`, an input
    batch, layers are planned (`backend="auto"`) and each round proves that it computes what the dense model does;
    without one, they run on the backend named, by default "dense". Criteria that need it get `data` and `loss`, see
    `prune`, and as `start` the rewind point. Raises ProofError where a round broke a rule.
    """
    backend = backend or ("dense" if sample is None else "auto")
    pruning = Pruning(
        rounds,
        rate=rate,
        density=density,
        schedule=schedule,
        criterion=criterion,
        importance=importance,
        pattern=pattern,
        allocation=allocation,
        rates=rates,
        floor=floor,
        param_filter=param_filter,
        seed=seed,
    )
    evidence = Evidence(None if data is None else list(data), loss)
    yield from search(model, pruning, rewind, backend, sample, Records(None), ranks.current(), evidence)


def imp(
    trainer: Trainer,
    *,
    rounds: int,
    rate: float | None = None,
    density: float | None = None,
    schedule: Literal["constant", "cubic"] = "constant",
    rewind_to: int = 0,
    rewind: Rewind = "weights",
    backend: str = "auto",
    criterion: str | Criterion = "magnitude",
    importance: Importance | None = None,
    pattern: Pattern = Unstructured(),
    allocation: Allocation = "global",
    rates: Mapping[str, float] | None = None,
    floor: Floor | None = None,
    param_filter: ParamFilter | None = None,
    seed: int = 0,
    batches: int = 1,
    records: Records | None = None,
) -> Iterator[Ticket]:
    """Yields a ticket after each of `rounds` + 1 trainings; `ticket.provenance["metrics"]` says how it did.

    `rewind_to` is step k: rounds from 1 on start there, with the learning rate, data order and noise of that step,
    a fresh optimizer and, with `rewind="weights"`, the weights and BatchNorm statistics. "learning_rate" keeps the
    trained weights (Renda et al., 2020, arXiv:2003.02389), "none" also stays at the last learning rate
    (fine-tuning). One-shot pruning is `rounds=1`. With `records`, a folder, a stopped run resumes by the same call.
    Criteria that look at data get the first `batches` of the trainer's, and its loss. The rest as in `rounds`.
    """
    if not 0 <= rewind_to < trainer.steps:
        raise ValueError(f"rewind_to: expected a step in [0, {trainer.steps}), got {rewind_to}")
    pruning = Pruning(
        rounds,
        rate=rate,
        density=density,
        schedule=schedule,
        criterion=criterion,
        importance=importance,
        pattern=pattern,
        allocation=allocation,
        rates=rates,
        floor=floor,
        param_filter=param_filter,
        seed=seed,
    )
    yield from train_rounds(
        trainer,
        pruning,
        records or Records(None),
        algorithm="imp",
        rewind=rewind,
        rewind_to=rewind_to,
        backend=backend,
        batches=batches,
    )


def train_dynamic(
    trainer: Trainer,
    method: Dynamic,
    *,
    backend: str = "auto",
    param_filter: ParamFilter | None = None,
    records: Records | None = None,
) -> Iterator[Ticket]:
    """Yields two tickets: of the dense network, and of one that trains from the same weights while its masks change.

    So both have had equal steps, data and noise. The second ticket has the masks of the end and the weights of the
    beginning. With `records`, a folder, a stopped run resumes by the same call.
    """
    start = Start(method, param_filter, derive(trainer.seed, "masks"))
    yield from train_rounds(
        trainer,
        start,
        records or Records(None),
        algorithm=type(method).__name__.lower(),
        backend=backend,
        dynamic=method,
    )
