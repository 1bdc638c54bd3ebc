"""Controls: the ticket's mask or its weights taken away, trained as the ticket was (Frankle & Carbin, 2019, §2).

* reinit: the ticket's mask, newly drawn weights. Is it the mask alone?
* shuffle: the mask shuffled within each layer, the ticket's own rewind point. Is it the counts per layer?
* random: a random mask of equal counts per layer, newly drawn weights. Is it anything at all?

The seed is paired: data order and noise are the ticket's own. Networks with newly drawn weights train all steps from
0, those with rewound weights from the ticket's step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sparseflow.files import Ticket
from sparseflow.hardware.model import dense_state, load_dense_state, masks_by_every_name
from sparseflow.hardware.plan import Plan, densify, sparsify
from sparseflow.hardware.streaming.execution import stream_of
from sparseflow.hardware.weights import keep, weights_of
from sparseflow.masks.masks import Masks
from sparseflow.masks.select import shuffle_masks
from sparseflow.training import proof
from sparseflow.training.progress import Progress
from sparseflow.training.records import Records, describe
from sparseflow.training.seeds import derive
from sparseflow.training.streaming import commit_weights, token_of
from sparseflow.training.trainer import Trained, Trainer

Kind = Literal["reinit", "shuffle", "random"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def train_control(
    trainer: Trainer,
    ticket: Ticket,
    kind: Kind,
    rewind_point: dict[str, Tensor],
    records: Records | None = None,
) -> Trained:
    """Trains a control of the ticket, on the ticket's own plan. `rewind_point` is theta_k, whole: shuffle needs it.

    A copy of the trainer's model serves as the body, so that a search that is under way keeps its own; the trainer
    holds it afterwards. A streamed model has no copy: it is the body itself, and gets its weights back. `ValueError`
    for shuffle of a ticket whose round kept its trained weights: they are zero where the shuffled mask would look.
    """
    masks, state, start = _control(trainer, ticket, kind, rewind_point)
    plan = Plan.from_json(ticket.plan) if ticket.plan is not None else None
    records = records or Records(None)
    with _body(trainer) as model:
        progress = records.progress(ticket.round, masks, trainer.seed, kind, token_of(model))
        trained = _train(trainer, model, masks, state, start, plan, progress)
        records.finish(ticket.round, {**describe(ticket.round, masks, plan, trained), "kind": kind}, trained, kind)
    return trained


def train_ticket(trainer: Trainer, ticket: Ticket) -> Trained:
    """Trains a ticket again from its rewind point, on its own plan: under another loss, say, or on other data.

    As in `train_control` the trainer holds the trained model afterwards. With the trainer of its search this repeats
    what the search did, bit for bit.
    """
    plan = Plan.from_json(ticket.plan) if ticket.plan is not None else None
    state = {name: tensor.to(weights_of(trainer.model).device) for name, tensor in ticket.rewind.items()}
    start = ticket.provenance.get("rewind_to", 0) if ticket.round else 0
    assert isinstance(start, int)
    with _body(trainer) as model:
        return _train(trainer, model, ticket.masks.to(weights_of(model).device), state, start, plan, None)


@contextmanager
def _body(trainer: Trainer) -> Iterator[nn.Module]:
    """A dense model to train: a copy; or a streamed one itself, which gets back what it had."""
    if stream_of(trainer.model) is None:
        yield densify(copy.deepcopy(trainer.model))
        return
    before = keep(trainer.model, trainer.model.state_dict())
    try:
        yield densify(trainer.model)
    finally:
        # A dense weight keeps its places under the mask that it meets, and after a resume these are dense.
        densify(trainer.model).load_state_dict(before)
    commit_weights(trainer.model)


def _train(
    trainer: Trainer,
    model: nn.Module,
    masks: Masks,
    state: dict[str, Tensor],
    start: int,
    plan: Plan | None,
    progress: Progress | None,
) -> Trained:
    load_dense_state(model, state)
    if plan is not None:
        model = sparsify(model, masks, plan=plan)
    masked = masks_by_every_name(model, masks)
    expected = {n: torch.where(masked[n], t, 0.0) if n in masked else t for n, t in state.items()}
    proof.prove_rewound(model, masks, expected)
    trained = trainer.train(model, start=start, progress=progress)
    proof.prove_pruned(model, masks)
    trainer.model = model
    return trained


def _control(
    trainer: Trainer, ticket: Ticket, kind: str, rewind_point: dict[str, Tensor]
) -> tuple[Masks, dict[str, Tensor], int]:
    if kind not in KINDS:
        raise ValueError(f"no control {kind!r}; available: {', '.join(KINDS)}")
    device = weights_of(trainer.model).device
    masks = ticket.masks.to(device)
    if kind != "reinit":
        masks = shuffle_masks(masks, derive(trainer.seed, kind, ticket.round))
    if kind != "shuffle":
        return masks, dense_state(trainer.build(kind, ticket.round)), 0
    if ticket.provenance.get("rewind", "weights") != "weights":
        raise ValueError("the shuffle control needs rewind='weights': other tickets have no weights at other places")
    start = ticket.provenance.get("rewind_to", 0)
    assert isinstance(start, int)
    return masks, {name: tensor.to(device) for name, tensor in rewind_point.items()}, start
