"""The rounds of a search: each prunes, rewinds, plans and proves itself, and is trained.

What iterative pruning and pruning at initialisation have in common; `lottery` and `at_init` say what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Literal

from torch import nn

from sparseflow.files import Ticket
from sparseflow.hardware import backends
from sparseflow.hardware.model import current_masks, dense_state, load_dense_state, masks_by_every_name
from sparseflow.hardware.plan import densify, sparsify
from sparseflow.hardware.sample import Sample
from sparseflow.hardware.weights import weights_of
from sparseflow.masks.dynamic import Dynamic
from sparseflow.masks.masks import Masks
from sparseflow.masks.sign_in import sign_flips
from sparseflow.ranks import Ranks
from sparseflow.training import proof
from sparseflow.training.agreement import check_structure
from sparseflow.training.connection import check_connected
from sparseflow.training.criteria import NO_EVIDENCE, Evidence
from sparseflow.training.pruning import Prunes, prunable_weights
from sparseflow.training.records import Records, describe
from sparseflow.training.round import Round, masked
from sparseflow.training.round_plan import plan_round
from sparseflow.training.schedules import Schedule
from sparseflow.training.streaming import commit_weights, token_of
from sparseflow.training.trainer import Stopped, Trainer

Rewind = Literal["weights", "learning_rate", "none"]


def train_rounds(
    trainer: Trainer,
    pruning: Prunes,
    records: Records,
    *,
    algorithm: str,
    rewind: Rewind = "weights",
    rewind_to: int = 0,
    backend: str = "auto",
    batches: int = 1,
    dynamic: Dynamic | None = None,
) -> Iterator[Ticket]:
    """Yields a ticket after each training, first those on record.

    `batches`: how many of the first ones criteria look at. `dynamic`: what changes masks in trainings from round 1 on.
    """
    if batches < 1:
        raise ValueError(f"batches: expected at least 1 for a criterion to look at, got {batches}")
    yield from records.tickets()
    sample = trainer.sample()
    autocast = trainer.accelerator.autocast
    evidence = Evidence(trainer.batches(batches), trainer.loss)
    found = search(
        trainer.model, pruning, rewind, backend, sample, records, trainer.ranks, evidence, lambda: autocast()
    )
    for round in found:
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
        flips = sign_flips(round.start, dense_state(round.model), round.masks)
        round.finish({**describe(round.index, round.masks, round.plan, trained), "sign_flips": flips})
        about = {"algorithm": algorithm, "seed": trainer.seed, "rewind": rewind, "rewind_to": rewind_to}
        ticket = round.ticket(about)
        records.finish_round(round.index, round.model, round.rewind_point, ticket, trained)
        commit_weights(round.model)
        trainer.model, trainer.last = round.model, trained
        yield ticket
        if round.index < pruning.rounds and trainer.stopping():
            raise Stopped(trainer.steps)


def search(
    model: nn.Module,
    pruning: Prunes,
    rewind: Rewind,
    backend: str,
    sample: Sample | None,
    records: Records,
    launched: Ranks,
    evidence: Evidence = NO_EVIDENCE,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Round]:
    """Yields the rounds that are not on record, from `records.first` on, each to be trained and finished.

    `evidence`: what criteria look at beside the weights; the rewind point is added to it. ValueError where the masks
    leave no path from the input to the output, unless the floor is 0; only seen where there is a sample.
    """
    _check_rewind(rewind)
    shapes = {name: weight.shape for name, weight in prunable_weights(model, pruning.param_filter).items()}
    device = weights_of(model).device
    first = records.finished_rounds()
    _check_dense(model, first)
    theta_0 = dense_state(model)
    everything = Masks.ones(shapes, device)
    pruning.check(model, everything, replace(evidence, start=theta_0))
    if backend != "auto":
        backends.get(backend)
    if not first:
        records.begin(theta_0)
    round = Round(0, model, everything, None, theta_0, records.rewind_point(device, model) or theta_0)
    if first:
        # The run goes on behind the last round on record, with its masks and trained weights.
        last = records.trained(first - 1)
        model = densify(model)
        round = Round(first - 1, model, last.masks.to(device), None, {}, round.rewind_point, {})
        load_dense_state(model, last.state)
    elif not records.first:
        yield from _train(round)
    for index in range(round.index + 1, pruning.rounds + 1):
        recorded = records.masks(index)
        seen = replace(evidence, start=round.rewind_point)
        masks = pruning(model, round.masks, index, seen) if recorded is None else recorded.to(device)
        model = densify(model)
        if sample is not None and not pruning.may_cut:
            check_connected(model, masks, sample)
        if rewind == "weights":
            load_dense_state(model, round.rewind_point)
        # Of the rewind point itself, not of the model: the proof must see a weight that was not rewound.
        state = round.rewind_point if rewind == "weights" else dense_state(model)
        start = masked(state, masks_by_every_name(model, masks), model)
        with autocast():
            chosen = plan_round(model, pruning.planned(model, masks), backend, sample, records, index, launched)
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


def _mark(round: Round, records: Records) -> None:
    round.mark_rewind_point()
    records.keep_rewind_point(round.rewind_point)


def _last_rate(trainer: Trainer) -> Schedule:
    factor = trainer.schedule(trainer.steps - 1)
    return lambda step: factor
