"""How one training runs on the processes of a launch: whole on each of them, or sharded over them.

`Replicated` is accelerate's: one process, or DDP. `Sharded`, in its own module, is torch's FSDP2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sparseflow.hardware.plan import remask
from sparseflow.hardware.streaming.execution import stream_of
from sparseflow.ranks import Ranks
from sparseflow.training.progress import optimizer_state, restore_optimizer

EngineName = Literal["ddp", "fsdp2"]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


class Engine(Protocol):
    """A model in training. Every method is called by all ranks alike."""

    # What computes the output, and the optimizer whose groups have the learning rates.
    module: nn.Module
    optimizer: torch.optim.Optimizer

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward; gradients are reduced over the ranks in the last one of a step alone."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds to the gradients."""

    def step(self, clip: float | None) -> None:
        """One optimizer step; gradients are cleared. `clip` bounds their norm."""

    def remask(self, masks: Mapping[str, Tensor]) -> None:
        """Gives the model in training other masks; the optimizer's state follows, gradients are cleared."""

    def gather(self) -> None:
        """Brings the present weights into the model that was given."""

    def scatter(self, optimizer: Mapping[str, Tensor]) -> None:
        """Takes up weights from the model that was given, and an optimizer's canonical state."""

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's state, canonical: see `progress.optimizer_state`."""
        ...

    def release(self) -> None:
        """Gathers, and lets go of the model."""


def make_engine(
    name: EngineName, model: nn.Module, make_optimizer: MakeOptimizer, accelerator: Accelerator, ranks: Ranks
) -> Engine:
    """The engine of that name, or a streamed model's own. One process alone has nothing to shard."""
    stream = stream_of(model)
    if stream is not None:
        from sparseflow.training.streaming import Streamed

        return Streamed(model, make_optimizer, stream)
    if name == "fsdp2" and ranks.world > 1:
        from sparseflow.training.sharded import Sharded

        return Sharded(model, make_optimizer, accelerator, ranks)
    return Replicated(model, make_optimizer, accelerator)


class Replicated:
    """The whole model on every rank, gradients averaged: torch's DDP as accelerate prepares it, or one process."""

    def __init__(self, model: nn.Module, make_optimizer: MakeOptimizer, accelerator: Accelerator) -> None:
        self._model, self._accelerator = model, accelerator
        self.optimizer = make_optimizer(model)
        self._alone = accelerator.num_processes == 1
        self._prepare()

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        if last or self._alone:
            return nullcontext()
        waiting: AbstractContextManager[None] = self._accelerator.no_sync(self.module)
        return waiting

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def step(self, clip: float | None) -> None:
        if clip is not None:
            self._accelerator.clip_grad_norm_(self._model.parameters(), clip)
        self._stepping.step()
        clear_gradients(self.optimizer)

    def remask(self, masks: Mapping[str, Tensor]) -> None:
        clear_gradients(self.optimizer)
        before = {id(parameter) for parameter in self._model.parameters()}
        remask(self._model, masks, self.optimizer)
        if not self._alone and any(id(parameter) not in before for parameter in self._model.parameters()):
            # DDP sends the gradients of the parameters that it saw.
            self.release()
            self._prepare()

    def gather(self) -> None:
        """Every rank has the weights."""

    def scatter(self, optimizer: Mapping[str, Tensor]) -> None:
        restore_optimizer(self._model, self.optimizer, optimizer)

    def optimizer_state(self) -> dict[str, Tensor]:
        return optimizer_state(self._model, self.optimizer.state)

    def release(self) -> None:
        # The accelerator lets go of the model, which takes its own forward back.
        self._accelerator.unwrap_model(self.module, keep_fp32_wrapper=False)
        self._accelerator.free_memory()
        # With this mark, which it leaves, its next `prepare` of the model would do nothing, autocast included.
        self._model.__dict__.pop("_is_accelerate_prepared", None)

    def _prepare(self) -> None:
        self.module, scaled = self._accelerator.prepare(self._model, self.optimizer)
        # accelerate's wrapper looks for other packages on the disk at each step; it is needed only to scale losses.
        self._stepping = self.optimizer if self._accelerator.scaler is None else scaled


def clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """What zero_grad does, without its bookkeeping, which costs a fiftieth of a small step."""
    groups: Iterable[dict[str, Any]] = optimizer.param_groups
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = None
