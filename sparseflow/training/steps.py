"""One training: its steps, evaluations and stops, and what it comes to. `Trainer` makes it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparseflow.hardware.model import logical_numel, param_groups
from sparseflow.hardware.optimizers import check_optimizer
from sparseflow.training.evaluation import Evaluation, evaluate
from sparseflow.training.progress import Progress, optimizer_state, restore_optimizer
from sparseflow.training.schedules import Schedule
from sparseflow.training.seeds import derive

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
    early_state: dict[str, Tensor] = field(repr=False)


class Training:
    """One call of `Trainer.train`."""

    def __init__(
        self, trainer: Trainer, model: nn.Module, start: int, schedule: Schedule, progress: Progress | None
    ) -> None:
        self.trainer, self.model, self.schedule, self.progress = trainer, model, schedule, progress
        # `first` is where the training began, `start` where this call of it does, after a resume.
        self.first = self.start = start
        self.accelerator = trainer.accelerator
        decay = trainer.weight_decay
        optimizer = trainer.make_optimizer(param_groups(model, decay) if decay else list(model.parameters()))
        check_optimizer(optimizer, model)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.bare = optimizer
        self.prepared, scaled = self.accelerator.prepare(model, optimizer)
        # accelerate's wrapper looks for other packages on the disk at each step; it is needed only to scale losses.
        self.optimizer = optimizer if self.accelerator.scaler is None else scaled
        self.noise = derive(trainer.seed, "noise")
        self.best_loss, self.best_step = float("inf"), start
        self.best_state: dict[str, Tensor] = {}
        self.stretches: list[float] = []
        self.last_loss: Tensor | None = None
        if progress is not None and progress.saved is not None:
            self._restore(progress)

    def remaining(self) -> Iterator[int]:
        """The steps still to do, with evaluations and stops between them."""
        trainer = self.trainer
        self.prepared.train()
        stretch, clock = self.start, time.perf_counter()
        for step in range(self.start, trainer.steps):
            yield step
            done = step + 1
            stop = trainer.should_stop() and done < trainer.steps
            if done % trainer.evaluate_every == 0 or done == trainer.steps or stop:
                if trainer.device.type == "cuda":
                    # A step returns before the GPU has done it.
                    torch.cuda.synchronize(trainer.device)
                self.stretches.append((time.perf_counter() - clock) / (done - stretch))
                if not stop or done % trainer.evaluate_every == 0:
                    self._validate(done)
                self._keep(done, stop)
                stretch, clock = done, time.perf_counter()

    def step(self, step: int) -> None:
        """One optimizer step."""
        trainer, accelerator = self.trainer, self.accelerator
        factor = self.schedule(step)
        for group, rate in zip(self.bare.param_groups, self.rates):
            group["lr"] = rate * factor
        _seed(self.noise + step, trainer.device)
        indices = trainer.order.indices(step)
        for part in indices.chunk(trainer.accumulate) if trainer.accumulate > 1 else (indices,):
            x, y = trainer.data.train.batch(part)
            x, y = x.to(trainer.device, non_blocking=True), y.to(trainer.device, non_blocking=True)
            loss = trainer.loss(self.prepared(x), y)
            accelerator.backward(loss / trainer.accumulate if trainer.accumulate > 1 else loss)
            self.last_loss = loss.detach()
        if trainer.clip is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), trainer.clip)
        self.optimizer.step()
        # What zero_grad does, without its bookkeeping, which costs a fiftieth of a small step.
        for group in self.bare.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def finish(self, began: float) -> Trained:
        """Measures on the test split, at early stop and at the end."""
        trainer = self.trainer
        self._release()
        at_end = self._test()
        # The tensors themselves: a state dict has nothing at pruned places, and would hide what the proof looks for.
        tensors = [*self.model.parameters(), *self.model.buffers()]
        last = [tensor.detach().clone() for tensor in tensors]
        self.model.load_state_dict(self.best_state)
        at_best = self._test() if self.best_step != trainer.steps else at_end
        with torch.no_grad():
            for tensor, value in zip(tensors, last):
                tensor.copy_(value)
        self.model.zero_grad()
        return Trained(
            steps=trainer.steps - self.first,
            early_stop_step=self.best_step,
            validation_loss=self.best_loss,
            test=at_best,
            test_at_end=at_end,
            step_seconds=median(self.stretches) if self.stretches else float("nan"),
            seconds=time.perf_counter() - began,
            state_ratio=sum(parameter.numel() for parameter in self.model.parameters()) / logical_numel(self.model),
            early_state=self.best_state,
        )

    def _release(self) -> None:
        # The accelerator lets go of the model, which takes its own forward back.
        self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def _test(self) -> Evaluation:
        return evaluate(self.model, self.trainer.data.test, loss=self.trainer.loss, device=self.trainer.device)

    def _validate(self, done: int) -> None:
        trainer = self.trainer
        loss = float("nan") if self.last_loss is None else float(self.last_loss)
        split = trainer.data.validation
        found = evaluate(self.prepared, split, loss=trainer.loss, device=trainer.device)
        if not (math.isfinite(loss) and math.isfinite(found.loss)):
            raise FloatingPointError(
                f"the loss is not finite at step {done} (training {loss}, validation {found.loss}); nothing of it "
                "was saved. Lower the learning rate, clip the gradient, or warm up longer"
            )
        if found.loss < self.best_loss:
            self.best_loss, self.best_step = found.loss, done
            self.best_state = {key: tensor.detach().clone() for key, tensor in self.model.state_dict().items()}
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

    def _keep(self, done: int, stop: bool) -> None:
        if self.progress is not None and done < self.trainer.steps and (stop or self.progress.due()):
            # JSON has no infinity: before the first evaluation there is no best loss.
            best_loss = self.best_loss if self.best_state else None
            scaler = self.accelerator.scaler
            state = {
                "step": done,
                "best_loss": best_loss,
                "best_step": self.best_step,
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            self.progress.save(self.model.state_dict(), self.best_state, optimizer_state(self.model, self.bare), state)
        if stop:
            self._release()
            raise Stopped(done)

    def _restore(self, progress: Progress) -> None:
        saved = progress.saved
        assert saved is not None
        self.model.load_state_dict(saved.model)
        restore_optimizer(self.model, self.bare, saved.optimizer)
        if self.accelerator.scaler is not None and saved.state["scaler"]:
            self.accelerator.scaler.load_state_dict(saved.state["scaler"])
        saved.restore_rng()
        self.start = int(saved.state["step"])
        if saved.best:
            self.best_loss, self.best_step = float(saved.state["best_loss"]), int(saved.state["best_step"])
            self.best_state = saved.best


def _seed(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
