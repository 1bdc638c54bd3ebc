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
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparseflow import ranks
from sparseflow.files import Ticket
from sparseflow.hardware import backends
from sparseflow.hardware.model import dense_state, load_dense_state, masks_by_every_name, sparse_layers
from sparseflow.hardware.plan import Plan, densify, plan, sparsify
from sparseflow.hardware.sample import Sample
from sparseflow.masks.allocation import Allocation
from sparseflow.masks.criteria import Criterion
from sparseflow.masks.floors import Floor
from sparseflow.masks.importance import Importance
from sparseflow.masks.masks import Masks
from sparseflow.masks.patterns import Pattern, Unstructured
from sparseflow.ranks import Ranks
from sparseflow.training import proof
from sparseflow.training.agreement import check_structure
from sparseflow.training.pruning import ParamFilter, Pruning, prunable_weights
from sparseflow.training.records import Records, describe
from sparseflow.training.schedules import Schedule
from sparseflow.training.trainer import Stopped, Trainer

Rewind = Literal["weights", "learning_rate", "none"]


@dataclass
class Round:
    """One network to train: `model`, sparse by `masks`, at its rewind point. `finish` it when it is trained."""

    index: int
    model: nn.Module
    masks: Masks
    plan: Plan | None
    # The state that training starts from: dense names → tensors, zeros at pruned places.
    start: dict[str, Tensor] = field(repr=False)
    # The state that later rounds rewind to: theta_k, whole.
    rewind_point: dict[str, Tensor] = field(repr=False)
    metrics: dict[str, Any] | None = None
    # Of the rewind point, when it was marked.
    _marked: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._marked = self._marked or proof.digests(self.rewind_point)

    @property
    def density(self) -> float:
        return self.masks.density

    def mark_rewind_point(self) -> None:
        """Makes the present weights theta_k. For rewinding to step k, call it there, in round 0."""
        if self.index != 0:
            raise ValueError(f"the rewind point belongs to round 0, this is round {self.index}")
        self.rewind_point = dense_state(self.model)
        self._marked = proof.digests(self.rewind_point)

    def after(self, model: nn.Module, masks: Masks, plan: Plan | None, start: dict[str, Tensor]) -> Round:
        """The next round, with the same rewind point."""
        return Round(self.index + 1, model, masks, plan, start, self.rewind_point, None, self._marked)

    def finish(self, metrics: Mapping[str, Any] | None = None) -> None:
        """Says that the model is trained. `metrics` goes with the ticket.

        Proves that no pruned weight moved, and that the rewind point did not.
        """
        proof.prove_pruned(self.model, self.masks)
        proof.prove_unmoved(self.rewind_point, self._marked)
        self.metrics = dict(metrics or {})

    def ticket(self, provenance: Mapping[str, Any] | None = None) -> Ticket:
        """The ticket: masks and the state to train them from."""
        made_under = None if self.plan is None else self.plan.to_json()
        about = {"algorithm": "imp", "round": self.index, "metrics": self.metrics or {}, **(provenance or {})}
        state = self.start if self.index else self.rewind_point
        return Ticket(self.masks, state, made_under, about)


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
    yield from _search(model, pruning, rewind, backend, sample, Records(None), ranks.current())


def _search(
    model: nn.Module,
    pruning: Pruning,
    rewind: Rewind,
    backend: str,
    sample: Sample | None,
    records: Records,
    launched: Ranks,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Round]:
    _check_rewind(rewind)
    shapes = {name: weight.shape for name, weight in prunable_weights(model, pruning.param_filter).items()}
    device = next(model.parameters()).device
    first = records.finished_rounds()
    _check_dense(model, first)
    theta_0 = dense_state(model)
    everything = Masks.ones(shapes, device)
    pruning.check(model, everything)
    if backend != "auto":
        backends.get(backend)
    if not first:
        records.begin(theta_0)
    round = Round(0, model, everything, None, theta_0, records.rewind_point(device) or theta_0)
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
        start = _masked(state, masks_by_every_name(model, masks))
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


def _masked(state: dict[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.where(masks[name], tensor, 0.0) if name in masks else tensor for name, tensor in state.items()}


def _check_dense(model: nn.Module, finished: int) -> None:
    # A search that goes on behind its records loads the trained weights anyway.
    sparse = sparse_layers(model)
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
    importance: Importance | None = None,
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
    records = records or Records(None)
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
    yield from records.tickets()
    sample = trainer.sample()
    autocast = trainer.accelerator.autocast
    for round in _search(trainer.model, pruning, rewind, backend, sample, records, trainer.ranks, lambda: autocast()):
        trained = trainer.train(
            round.model,
            start=rewind_to if round.index else 0,
            schedule=_last_rate(trainer) if rewind == "none" and round.index else None,
            at_step={rewind_to: partial(_mark, round, records)} if round.index == 0 and rewind_to else None,
            progress=records.progress(round.index, round.masks, trainer.seed),
        )
        round.finish(describe(round.index, round.masks, round.plan, trained))
        ticket = round.ticket({"seed": trainer.seed, "rewind": rewind, "rewind_to": rewind_to})
        records.finish_round(round.index, round.model, round.rewind_point, ticket, trained)
        trainer.model, trainer.last = round.model, trained
        yield ticket
        if round.index < rounds and trainer.stopping():
            raise Stopped(trainer.steps)


def _mark(round: Round, records: Records) -> None:
    round.mark_rewind_point()
    records.keep_rewind_point(round.rewind_point)


def _last_rate(trainer: Trainer) -> Schedule:
    factor = trainer.schedule(trainer.steps - 1)
    return lambda step: factor
