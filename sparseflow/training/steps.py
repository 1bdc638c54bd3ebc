"""One training: its steps, evaluations and stops, and what it comes to. `Trainer` makes it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparseflow.hardware.dense_gradient import DenseGradient
from sparseflow.hardware.model import logical_numel, trained_numel
from sparseflow.hardware.streaming.execution import stream_of
from sparseflow.hardware.traffic import gradient_bytes
from sparseflow.hardware.weights import keep
from sparseflow.masks.dynamic import Dynamic
from sparseflow.training.agreement import Pulse, check_structure
from sparseflow.training.engines import make_engine
from sparseflow.training.evaluation import Evaluation, evaluate
from sparseflow.training.masking import Masking
from sparseflow.training.progress import TOKEN, Progress
from sparseflow.training.schedules import Schedule
from sparseflow.training.seeds import derive
from sparseflow.training.streaming import commit_weights, new_token

if TYPE_CHECKING:
    from sparseflow.training.trainer import Trainer


class Stopped(Exception):
    """Training ended before its last step because it was asked to; what it reached is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.step = step


@dataclass(frozen=True)
class Trained:
    """What one training gave. `test` was measured at the early-stop step, the one of least validation loss."""

    steps: int
    early_stop_step: int
    validation_loss: float
    test: Evaluation
    test_at_end: Evaluation
    # Seconds of the steps alone, of one step (median over stretches), and with all evaluations.
    step_seconds: float
    seconds: float
    # How many numbers are trained, over those of the dense network: gradients and optimizer state shrink alike.
    state_ratio: float
    # See `Order.digest`; and how many processes shared each step.
    data_order: str
    processes: int
    # Of the parameters' gradients, which are what many processes send: of pruned layers as their backends store them,
    # of the same layers were they dense, and of all else.
    gradient_bytes: dict[str, int]
    early_state: dict[str, Tensor] = field(repr=False)


class Training:
    """One call of `Trainer.train`, by all ranks."""

    def __init__(
        self,
        trainer: Trainer,
        model: nn.Module,
        start: int,
        schedule: Schedule,
        progress: Progress | None,
        dynamic: Dynamic | None = None,
    ) -> None:
        self.trainer, self.model, self.schedule, self.progress = trainer, model, schedule, progress
        self.ranks = trainer.ranks
        self.masking = None if dynamic is None else Masking(dynamic, derive(trainer.seed, "masks"), self.ranks)
        # That of a streamed model is in its store, and comes with the optimizer's.
        if progress is not None and progress.saved is not None and progress.saved.model:
            # First of all: masks may have changed since the start, and parameters with them.
            self.model.load_state_dict(progress.saved.model)
        # `first` is where the training began, `start` where this call of it does, after a resume.
        self.first = self.start = start
        self.engine = make_engine(trainer.engine, model, trainer.optimizer_of, trainer.accelerator, self.ranks)
        self.rates = [group["lr"] for group in self.engine.optimizer.param_groups]
        # Before, a network that gets sparser on its way is not yet what it will be.
        self.settled = 0 if dynamic is None else dynamic.settled
        self.noise = derive(trainer.seed, "noise")
        self.best_loss, self.best_step = float("inf"), start
        self.best_state: dict[str, Tensor] = {}
        self.stretches: list[float] = []
        # Of the micro-batches of the last step.
        self.losses: list[Tensor] = []
        if progress is not None and progress.saved is not None:
            self._restore(progress)

    def remaining(self) -> Iterator[int]:
        """The steps still to do, with evaluations and stops between them."""
        trainer, pulse = self.trainer, Pulse(self.ranks)
        self.engine.module.train()
        stretch, clock = self.start, time.perf_counter()
        for step in range(self.start, trainer.steps):
            yield step
            done = step + 1
            evaluates = done % trainer.evaluate_every == 0 or done == trainer.steps
            if not (evaluates or pulse.due(done)):
                continue
            said = pulse(done, trainer.should_stop(), self.progress is not None and self.progress.due())
            stop = said.stop and done < trainer.steps
            if evaluates or stop or said.save:
                if trainer.device.type == "cuda":
                    # A step returns before the GPU has done it.
                    torch.cuda.synchronize(trainer.device)
                self.stretches.append((time.perf_counter() - clock) / (done - stretch))
                loss = self._finite_loss(done)
                if evaluates:
                    self._validate(done, loss)
                if stop or said.save:
                    self._keep(done)
                if stop:
                    self.engine.release()
                    raise Stopped(done)
                stretch, clock = done, time.perf_counter()

    def step(self, step: int) -> None:
        """One optimizer step. Each rank does its part of the micro-batches that the batch is cut into."""
        trainer, engine = self.trainer, self.engine
        factor = self.schedule(step)
        for group, rate in zip(engine.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor
        indices, each = trainer.order.indices(step), trainer.accumulate
        parts = each * self.ranks.world
        mine = indices.chunk(parts)[self.ranks.rank * each :][:each] if parts > 1 else (indices,)
        first = step * parts + self.ranks.rank * each
        self.losses = []
        with self._dense_gradients(step) as dense:
            self._micro_batches(mine, first)
        if self.masking is None or not self._change_masks(self.masking, step, dense):
            engine.step(trainer.clip)

    def _micro_batches(self, parts: Sequence[Tensor], first: int) -> None:
        trainer, engine, each = self.trainer, self.engine, self.trainer.accumulate
        for number, part in enumerate(parts):
            _seed(self.noise + first + number, trainer.device)
            x, y = trainer.data.train.batch(part)
            x, y = x.to(trainer.device, non_blocking=True), y.to(trainer.device, non_blocking=True)
            with engine.micro_batch(number == each - 1):
                loss = trainer.loss(engine.module(x), y)
                engine.backward(loss / each if each > 1 else loss)
            self.losses.append(loss.detach())

    def _dense_gradients(self, step: int) -> AbstractContextManager[dict[str, DenseGradient]]:
        return nullcontext({}) if self.masking is None else self.masking.gradients(step, self.model)

    def _change_masks(self, masking: Masking, step: int, dense: Mapping[str, DenseGradient]) -> bool:
        """Changes the masks where they are due. Returns whether the optimizer's step is done, or replaced."""
        instead = masking.method.replaces_step
        if not instead:
            self.engine.step(self.trainer.clip)
        masks = masking.update(step, self.model, dense)
        if masks is not None:
            self.engine.remask(masks)
        return masks is not None or not instead

    def finish(self, began: float) -> Trained:
        """Measures on the test split, at early stop and at the end."""
        trainer = self.trainer
        self.engine.release()
        at_end = self._test()
        at_best = at_end if self.best_step == trainer.steps else self._test_at_best()
        self.model.zero_grad()
        if self.progress is None:
            commit_weights(self.model)
        return Trained(
            steps=trainer.steps - self.first,
            early_stop_step=self.best_step,
            validation_loss=self.best_loss,
            test=at_best,
            test_at_end=at_end,
            step_seconds=median(self.stretches) if self.stretches else float("nan"),
            seconds=time.perf_counter() - began,
            state_ratio=trained_numel(self.model) / logical_numel(self.model),
            data_order=trainer.order.digest(self.first, trainer.steps),
            processes=self.ranks.world,
            gradient_bytes=gradient_bytes(self.model),
            early_state=self.best_state,
        )

    def _test(self, model: nn.Module | None = None) -> Evaluation:
        trainer, model = self.trainer, model or self.model
        return evaluate(model, trainer.data.test, loss=trainer.loss, device=trainer.device, ranks=self.ranks)

    def _test_at_best(self) -> Evaluation:
        if stream_of(self.model) is not None:
            now = keep(self.model, self.model.state_dict())
            self.model.load_state_dict(self.best_state)
            found = self._test()
            self.model.load_state_dict(now)
            return found
        # A copy, since the masks of then may be others, and loading them would exchange the model's parameters.
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.best_state)
        return self._test(model)

    def _finite_loss(self, done: int) -> float:
        """The last step's, over the micro-batches of all ranks, which differ. FloatingPointError on all alike."""
        found = [loss for losses in self.ranks.gather([float(loss) for loss in self.losses]) for loss in losses]
        if not all(map(math.isfinite, found)):
            raise FloatingPointError(_NOT_FINITE.format(what="the training loss", step=done))
        return math.fsum(found) / len(found)

    def _validate(self, done: int, loss: float) -> None:
        trainer = self.trainer
        split = trainer.data.validation
        found = evaluate(self.engine.module, split, loss=trainer.loss, device=trainer.device, ranks=self.ranks)
        if not math.isfinite(found.loss):
            raise FloatingPointError(_NOT_FINITE.format(what="the validation loss", step=done))
        if found.loss < self.best_loss and done >= self.settled:
            self.best_loss, self.best_step = found.loss, done
            self.engine.gather()
            self.best_state = keep(self.model, self.model.state_dict())
        trainer.listener(
            {
                "event": "step",
                "step": done,
                "steps": trainer.steps,
                "loss": loss,
                "validation_loss": found.loss,
                "validation_accuracy": found.accuracy,
                "step_seconds": self.stretches[-1],
            }
        )

    def _keep(self, done: int) -> None:
        if self.progress is None or done == self.trainer.steps:
            return
        self.engine.gather()
        for name, tensor in self.model.state_dict().items():
            # A gradient may have been infinite where the loss was not.
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise FloatingPointError(_NOT_FINITE.format(what=f"tensor {name}", step=done))
        check_structure(self.model, self.ranks)
        # JSON has no infinity: before the first evaluation there is no best loss.
        best_loss = self.best_loss if self.best_state else None
        scaler = self.trainer.accelerator.scaler
        state = {
            "step": done,
            "best_loss": best_loss,
            "best_step": self.best_step,
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        token = new_token(self.model)
        weights = self.model.state_dict() if token is None else {}
        self.progress.save(weights, self.best_state, self.engine.optimizer_state(), {**state, TOKEN: token})
        commit_weights(self.model, token)

    def _restore(self, progress: Progress) -> None:
        saved = progress.saved
        assert saved is not None
        self.engine.scatter(saved.optimizer)
        scaler = self.trainer.accelerator.scaler
        if scaler is not None and saved.state["scaler"]:
            scaler.load_state_dict(saved.state["scaler"])
        saved.restore_rng()
        self.start = int(saved.state["step"])
        if saved.best:
            self.best_loss, self.best_step = float(saved.state["best_loss"]), int(saved.state["best_step"])
            self.best_state = keep(self.model, saved.best) if stream_of(self.model) is not None else saved.best


_NOT_FINITE = (
    "{what} is not finite at step {step}; nothing of it was saved. Lower the learning rate, clip the gradient, or warm "
    "up longer"
)


def _seed(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
