"""The search for lottery tickets: iterative magnitude pruning with rewinding.

Frankle & Carbin, 2019 (arXiv:1803.03635), and for rewinding to step k Frankle et al., 2020 (arXiv:1912.05671):

    1. theta_0 ~ D, m = 1; train to step k and keep theta_k.
    2. Train f(x; m * theta_k) from step k to theta_T.
    3. Prune: of the survivors, the fraction with the smallest |theta_T| leaves m.
    4. Rewind to m * theta_k and go on at 2.

Round r trains the network after r prunings; round 0 is dense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

from torch import nn

from sparseflow import ranks
from sparseflow.files import Ticket
from sparseflow.hardware import backends
from sparseflow.hardware.model import current_masks, dense_state, load_dense_state, masks_by_every_name
from sparseflow.hardware.plan import Plan, densify, plan, sparsify
from sparseflow.hardware.sample import Sample
from sparseflow.hardware.weights import weights_of
from sparseflow.masks.allocation import Allocation
from sparseflow.masks.criteria import Criterion
from sparseflow.masks.dynamic import Dynamic
from sparseflow.masks.floors import Floor
from sparseflow.masks.masks import Masks
from sparseflow.masks.patterns import Pattern, Unstructured
from sparseflow.ranks import Ranks
from sparseflow.training import proof
from sparseflow.training.agreement import check_structure
from sparseflow.training.pruning import ParamFilter, Prunes, Pruning, Start, prunable_weights
from sparseflow.training.records import Records, describe
from sparseflow.training.round import Round, masked
from sparseflow.training.schedules import Schedule
from sparseflow.training.seeds import derive
from sparseflow.training.streaming import commit_weights, token_of
from sparseflow.training.trainer import Stopped, Trainer

Rewind = Literal["weights", "learning_rate", "none"]


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
    pattern: Pattern = Unstructured(),
    allocation: Allocation = "global",
    rates: Mapping[str, float] | None = None,
    floor: Floor | None = None,
    param_filter: ParamFilter | None = None,
    seed: int = 0,
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
    without one, they run on the backend named, by default "dense". Raises ProofError where a round broke a rule.
    """
    backend = backend or ("dense" if sample is None else "auto")
    pruning = Pruning(rounds, rate, density, schedule, criterion, pattern, allocation, rates, floor, param_filter, seed)
    yield from _search(model, pruning, rewind, backend, sample, Records(None), ranks.current())


def _search(
    model: nn.Module,
    pruning: Prunes,
    rewind: Rewind,
    backend: str,
    sample: Sample | None,
    records: Records,
    launched: Ranks,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Round]:
    _check_rewind(rewind)
    shapes = {name: weight.shape for name, weight in prunable_weights(model, pruning.param_filter).items()}
    device = weights_of(model).device
    first = records.finished_rounds()
    _check_dense(model, first)
    theta_0 = dense_state(model)
    everything = Masks.ones(shapes, device)
    pruning.check(model, everything)
    if backend != "auto":
        backends.get(backend)
    if not first:
        records.begin(theta_0)
    recorded_point = records.rewind_point(device, model)
    round = Round(0, model, everything, None, theta_0, recorded_point or theta_0)
    if first:
        # The run goes on behind the last round on record, with its masks and trained weights.
        last = records.trained(first - 1)
        model = densify(model)
        round = Round(first - 1, model, last.masks.to(device), None, {}, round.rewind_point, {})
        load_dense_state(model, last.state)
    else:
        yield from _train(round)
    for index in range(round.index + 1, pruning.rounds + 1):
        recorded = records.masks(index)
        masks = pruning(model, round.masks, index) if recorded is None else recorded.to(device)
        model = densify(model)
        if rewind == "weights":
            load_dense_state(model, round.rewind_point)
        # Of the rewind point itself, not of the model: the proof must see a weight that was not rewound.
        state = round.rewind_point if rewind == "weights" else dense_state(model)
        start = masked(model, state, masks_by_every_name(model, masks))
        with autocast():
            chosen = _plan(model, masks, backend, sample, records, index, launched)
        model = sparsify(model, masks, plan=chosen)
        check_structure(model, launched)
        proof.prove_rewound(model, masks, start)
        proof.prove_pruned(model, masks)
        if sample is not None:
            proof.prove_equal_to_dense(model, sample)
        round = round.after(model, masks, chosen, start)
        yield from _train(round)


def _train(round: Round) -> Iterator[Round]:
    yield round
    if round.metrics is None:
        raise RuntimeError(f"round {round.index} was not finished: call round.finish() after training it")


def _plan(
    model: nn.Module,
    masks: Masks,
    backend: str,
    sample: Sample | None,
    records: Records,
    index: int,
    launched: Ranks,
) -> Plan:
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


def _check_dense(model: nn.Module, finished: int) -> None:
    # A search that goes on behind its records loads the trained weights anyway.
    sparse = list(current_masks(model))
    if sparse and not finished:
        raise ValueError(
            f"expected a dense model to search in, got one with sparse layers ({', '.join(sparse)}), such as an "
            "earlier search leaves; build the model, or the Trainer, anew (sf.densify would keep the trained weights)"
        )


def _check_rewind(rewind: str) -> None:
    choices = ("weights", "learning_rate", "none")
    if rewind not in choices:
        raise ValueError(f"rewind: expected one of {', '.join(choices)}, got {rewind!r}")


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
    pattern: Pattern = Unstructured(),
    allocation: Allocation = "global",
    rates: Mapping[str, float] | None = None,
    floor: Floor | None = None,
    param_filter: ParamFilter | None = None,
    seed: int = 0,
    records: Records | None = None,
) -> Iterator[Ticket]:
    """Yields a ticket after each of `rounds` + 1 trainings; `ticket.provenance["metrics"]` says how it did.

    `rewind_to` is step k: rounds from 1 on start there, with the learning rate, data order and noise of that step,
    a fresh optimizer and, with `rewind="weights"`, the weights and BatchNorm statistics. "learning_rate" keeps the
    trained weights (Renda et al., 2020, arXiv:2003.02389), "none" also stays at the last learning rate
    (fine-tuning). One-shot pruning is `rounds=1`. With `records`, a folder, a stopped run resumes by the same call.
    The rest as in `rounds`.
    """
    if not 0 <= rewind_to < trainer.steps:
        raise ValueError(f"rewind_to: expected a step in [0, {trainer.steps}), got {rewind_to}")
    pruning = Pruning(rounds, rate, density, schedule, criterion, pattern, allocation, rates, floor, param_filter, seed)
    yield from _tickets(trainer, pruning, rewind, rewind_to, backend, records or Records(None))


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
    yield from _tickets(trainer, start, "weights", 0, backend, records or Records(None), method)


def _tickets(
    trainer: Trainer,
    pruning: Prunes,
    rewind: Rewind,
    rewind_to: int,
    backend: str,
    records: Records,
    dynamic: Dynamic | None = None,
) -> Iterator[Ticket]:
    yield from records.tickets()
    sample = trainer.sample()
    autocast = trainer.accelerator.autocast
    for round in _search(trainer.model, pruning, rewind, backend, sample, records, trainer.ranks, lambda: autocast()):
        trained = trainer.train(
            round.model,
            start=rewind_to if round.index else 0,
            schedule=_last_rate(trainer) if rewind == "none" and round.index else None,
            at_step={rewind_to: partial(_mark, round, records)} if round.index == 0 and rewind_to else None,
            progress=records.progress(round.index, round.masks, trainer.seed, token=token_of(round.model)),
            dynamic=dynamic if round.index else None,
        )
        if dynamic is not None and round.index:
            round.take_masks()
        round.finish(describe(round.index, round.masks, round.plan, trained))
        ticket = round.ticket({"seed": trainer.seed, "rewind": rewind, "rewind_to": rewind_to})
        records.finish_round(round.index, round.model, round.rewind_point, ticket, trained)
        commit_weights(round.model)
        trainer.model, trainer.last = round.model, trained
        yield ticket
        if round.index < pruning.rounds and trainer.stopping():
            raise Stopped(trainer.steps)


def _mark(round: Round, records: Records) -> None:
    round.mark_rewind_point()
    records.keep_rewind_point(round.rewind_point)


def _last_rate(trainer: Trainer) -> Schedule:
    factor = trainer.schedule(trainer.steps - 1)
    return lambda step: factor
