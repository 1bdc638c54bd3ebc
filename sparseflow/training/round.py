"""One round of a search: a network at its rewind point, and what is proved of it once it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.files import Ticket
from sparseflow.hardware.model import current_masks, dense_state, masks_by_every_name
from sparseflow.hardware.plan import Plan
from sparseflow.hardware.streaming.execution import stream_of
from sparseflow.hardware.weights import weights_of
from sparseflow.masks.masks import Masks
from sparseflow.training import proof


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

    def take_masks(self) -> None:
        """Makes the model's present masks the round's, where training has changed them."""
        self.masks = Masks(current_masks(self.model))
        self.start = masked(self.rewind_point, masks_by_every_name(self.model, self.masks), self.model)

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


def masked(
    state: Mapping[str, Tensor], masks: Mapping[str, Tensor], model: nn.Module | None = None
) -> dict[str, Tensor]:
    """The state with +0.0 wherever a mask prunes; in mapped files where it is that of a streamed model."""
    streamed = model is not None and stream_of(model) is not None
    found = dict(state)
    for name in state.keys() & masks.keys():
        pruned = torch.where(masks[name], state[name], 0.0)
        found[name] = weights_of(model).keep(pruned) if model is not None and streamed else pruned
    return found
