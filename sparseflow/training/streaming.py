"""Training on sf.stream: weights and optimizer state in a store, which is also the checkpoint.

A save is two commits: first of the little that the store does not hold (step, best weights, random numbers) as ever,
with a token; then of the store, with the same token. A crash between them leaves the store with the token of the
checkpoint before, and that is the one that is taken.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sparseflow.hardware.plan import remask
from sparseflow.hardware.streaming.execution import Stream, stream_of
from sparseflow.hardware.streaming.model import stream
from sparseflow.training.progress import TOKEN

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Streaming:
    """How a Trainer streams its networks; see `sf.stream`. One after another, they have the same store.

    store: a folder, which is the Trainer's alone; None for memory. A store that is there already counts only as the
    checkpoint of a training that is gone on with. `systems` share out the micro-batches of a step: there are
    systems × accumulate of them. `spill`, which clipping needs, keeps gradients until all have come.
    """

    store: Path | str | None
    format: str = "fp32"
    systems: int = 1
    spill: bool = False
    buffer_limit: int | None = None
    strict: bool = False
    initialise: Callable[[nn.Module], None] | None = None

    def check(self, clip: float | None, world: int, precision: str | None) -> None:
        """`ValueError` for what cannot go together."""
        if world > 1:
            raise ValueError(f"stream: expected one process, got a launch of {world}; emulate more with systems=")
        if precision not in (None, "no"):
            raise ValueError(
                f"stream: expected an accelerator without mixed precision, got {precision!r}; pass format= to Streaming"
            )
        if clip is not None and not self.spill:
            raise ValueError(
                "clip: the global norm needs all gradients before the first is applied; pass Streaming(..., "
                "spill=True), which keeps them on the way, or leave clip out"
            )

    def begin(
        self, model: nn.Module, make_optimizer: MakeOptimizer, micro_batches: int, device: torch.device
    ) -> nn.Module:
        """The model, streamed, with the weights that it has."""
        streamed, _ = stream(
            model,
            make_optimizer(model),
            self.store,
            format=self.format,
            systems=self.systems,
            micro_batches=micro_batches,
            spill=self.spill,
            device=device,
            buffer_limit=self.buffer_limit,
            initialise=self.initialise,
            strict=self.strict,
            anew=True,
        )
        return streamed


class Streamed:
    """The engine of a streamed model. Its optimizer begins anew; `scatter` goes back to what was committed."""

    def __init__(self, model: nn.Module, make_optimizer: MakeOptimizer, stream: Stream) -> None:
        self.module, self._stream = model, stream
        self._optimizer = stream.renew(make_optimizer(model))
        self.optimizer: torch.optim.Optimizer = self._optimizer

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._optimizer.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, clip: float | None) -> None:
        if clip is not None:
            self._optimizer.clip_grad_norm_(clip)
        self._optimizer.step()

    def remask(self, masks: Mapping[str, Tensor]) -> None:
        remask(self.module, masks)

    def gather(self) -> None:
        """The weights are the model's."""

    def scatter(self, optimizer: Mapping[str, Tensor]) -> None:
        self._stream.rollback()

    def optimizer_state(self) -> dict[str, Tensor]:
        """Nothing: it is in the store."""
        return {}

    def release(self) -> None:
        """There is nothing around the model."""


def token_of(model: nn.Module) -> str | None:
    """What the store of a streamed model was committed with last; None for any other model."""
    found = stream_of(model)
    if found is None:
        return None
    note = found.store.about.get("note")
    token = note.get(TOKEN) if isinstance(note, dict) else None
    return token if isinstance(token, str) else _NONE


def new_token(model: nn.Module) -> str | None:
    """What the next commit will have; None for a model that has no store."""
    return None if stream_of(model) is None else uuid.uuid4().hex


def commit_weights(model: nn.Module, token: str | None = None) -> None:
    """Commits the store of a streamed model; any other one has nothing to commit."""
    found = stream_of(model)
    if found is not None:
        found.commit({} if token is None else {TOKEN: token})


# No checkpoint has it.
_NONE = ""
