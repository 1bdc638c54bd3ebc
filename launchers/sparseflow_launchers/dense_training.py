"""The dense round of a search under DeepSpeed: the same steps as `sparseflow.training.steps` does, on shards.

Data, their order and noise, learning rates and clipping are the trainer's, each a pure function of seed and step. Only
what is kept is another: checkpoints are DeepSpeed's own, and the weights never come together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from sparseflow.data import Split
from sparseflow.files.part import Part, array_part
from sparseflow.files.readers import read_array
from sparseflow.hardware.traffic import gradient_bytes
from sparseflow.ranks import Ranks
from sparseflow.training.agreement import Pulse
from sparseflow.training.evaluation import Evaluation, evaluate
from sparseflow.training.seeds import derive
from sparseflow.training.trainer import Stopped, Trained, Trainer
from sparseflow.zero_config import Cut
from sparseflow_launchers.zero_checkpoints import ZeroCheckpoints
from sparseflow_launchers.zero_engine import InFloat32, set_rate
from sparseflow_launchers.zero_slices import Engine

_BEST, _LAST = "best_scores.npy", "last_scores.npy"


@dataclass
class _Measured:
    """What has been measured so far; `best` and `last` are of the test split."""

    best_loss: float = float("inf")
    best_step: int = 0
    best: Evaluation | None = None
    last: Evaluation | None = None
    step_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, JsonValue]:
        """Without the scores. JSON has no infinity: before the first evaluation there is no best loss."""
        return {
            "best_loss": self.best_loss if self.best else None,
            "best_step": self.best_step,
            "test_loss": self.best.loss if self.best else None,
            "last_test_loss": self.last.loss if self.last else None,
            "step_seconds": list[JsonValue](self.step_seconds),
            "seconds": self.seconds,
        }

    def parts(self) -> dict[str, Part]:
        """The scores."""
        found = {_BEST: self.best, _LAST: self.last}
        return {name: array_part(one.scores.numpy()) for name, one in found.items() if one is not None}


class DenseTraining:
    """One training of the whole network, by all ranks; it goes on where its checkpoints say.

    rewind_to: a checkpoint of that step is kept for ever. note: what `ZeroFiles.about` of each checkpoint says.
    every_seconds: a checkpoint is written that often, by rank 0's clock.
    """

    def __init__(
        self,
        trainer: Trainer,
        engine: Engine,
        cut: Cut,
        checkpoints: ZeroCheckpoints,
        rewind_to: int,
        note: Mapping[str, JsonValue],
        every_seconds: float,
    ) -> None:
        self.trainer, self.engine, self.cut = trainer, engine, cut
        self.checkpoints, self.rewind_to, self.note = checkpoints, rewind_to, note
        self.ranks: Ranks = checkpoints.ranks
        self.model = InFloat32(engine)
        self.measured = _Measured()
        self._every, self._saved = every_seconds, time.monotonic()
        self._noise = derive(trainer.seed, "noise")
        self._loss = torch.zeros((), device=engine.device)
        # Counted where the losses are, so that no step waits for them.
        self._not_finite = torch.zeros((), dtype=torch.int64, device=engine.device)

    def run(self) -> Trained:
        """Trains to the last step. Raises Stopped, with a checkpoint written, and FloatingPointError with none."""
        start = self._resume()
        if start == 0 and self.rewind_to == 0:
            self._keep(0)
        began = time.perf_counter() - self.measured.seconds
        pulse = Pulse(self.ranks)
        self.model.train()
        stretch, clock = start, time.perf_counter()
        for step in range(start, self.trainer.steps):
            self._step(step)
            done = step + 1
            must = self._evaluates(done) or done == self.rewind_to
            if not (must or pulse.due(done)):
                continue
            said = pulse(done, self.trainer.should_stop(), time.monotonic() - self._saved >= self._every)
            self._check_finite(done)
            stop = said.stop and done < self.trainer.steps
            if must or stop or said.save:
                self.measured.step_seconds.append((time.perf_counter() - clock) / (done - stretch))
                self.measured.seconds = time.perf_counter() - began
                if self._evaluates(done):
                    self._validate(done)
                if stop or said.save or done in (self.rewind_to, self.trainer.steps):
                    self._keep(done)
                if stop:
                    raise Stopped(done)
                stretch, clock = done, time.perf_counter()
        return self._trained()

    def _step(self, step: int) -> None:
        trainer, cut = self.trainer, self.cut
        set_rate(self.engine, trainer.schedule(step))
        parts = cut.world * cut.accumulate
        first = self.ranks.rank * cut.accumulate
        mine = trainer.order.indices(step).chunk(parts)[first:][: cut.accumulate]
        for number, part in enumerate(mine):
            torch.manual_seed(self._noise + step * parts + first + number)
            x, y = self._batch(part)
            loss = trainer.loss(self.model(x), y)
            self.engine.backward(loss)
            self.engine.step()
            self._loss = loss.detach()
            self._not_finite += ~self._loss.isfinite()

    def _batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.trainer.data.train.batch(indices)
        return x.to(self.engine.device, non_blocking=True), y.to(self.engine.device, non_blocking=True)

    def _evaluates(self, done: int) -> bool:
        return done % self.trainer.evaluate_every == 0 or done == self.trainer.steps

    def _check_finite(self, done: int) -> None:
        wrong = int(self.ranks.sum(self._not_finite.cpu()))
        # DeepSpeed passes over a step whose gradients are not finite, on all ranks alike, and says nothing.
        if wrong or self.engine.skipped_steps:
            what = "a training loss" if wrong else "a gradient"
            raise _not_finite(what, done)

    def _validate(self, done: int) -> None:
        data, measured = self.trainer.data, self.measured
        found = self._evaluate(data.validation)
        if not math.isfinite(found.loss):
            raise _not_finite("the validation loss", done)
        if found.loss < measured.best_loss:
            # The weights of this step are not kept, so it is tested now.
            measured.best_loss, measured.best_step = found.loss, done
            measured.best = self._evaluate(data.test)
        if done == self.trainer.steps:
            measured.last = measured.best if measured.best_step == done else self._evaluate(data.test)
        self.trainer.listener(
            {
                "event": "step",
                "step": done,
                "steps": self.trainer.steps,
                "loss": float(self._loss),
                "validation_loss": found.loss,
                "validation_accuracy": found.accuracy,
                "step_seconds": measured.step_seconds[-1],
            }
        )

    def _evaluate(self, split: Split) -> Evaluation:
        loss = self.trainer.loss
        return evaluate(self.model, split, loss=loss, device=self.engine.device, ranks=self.ranks)

    def _keep(self, done: int) -> None:
        parts = self.measured.parts() if self.ranks.main else {}
        self.checkpoints.save(self.engine, done, self.measured.to_json(), parts, self.note)
        self._saved = time.monotonic()
        newest = self.checkpoints.steps()[-2:]
        self.checkpoints.keep({*newest, self.rewind_to, done})

    def _resume(self) -> int:
        steps = self.checkpoints.valid_steps()
        # What comes after the rewind point is of no use without it.
        usable = [step for step in steps if step <= self.rewind_to or self.rewind_to in steps]
        if not usable:
            return 0
        step = usable[-1]
        if step:
            # At step 0 there is nothing to take up: the model is made from the seed.
            self.checkpoints.load(self.engine, step)
        self.measured = self._read_measured(step)
        return step

    def _read_measured(self, step: int) -> _Measured:
        state: Any = self.checkpoints.state(step)

        def evaluation(name: str, loss: float | None) -> Evaluation | None:
            if loss is None:
                return None
            scores: np.ndarray[Any, Any] = self.checkpoints.read(step, name, read_array)
            return Evaluation(loss, torch.from_numpy(scores))

        return _Measured(
            best_loss=float("inf") if state["best_loss"] is None else state["best_loss"],
            best_step=state["best_step"],
            best=evaluation(_BEST, state["test_loss"]),
            last=evaluation(_LAST, state["last_test_loss"]),
            step_seconds=list(state["step_seconds"]),
            seconds=state["seconds"],
        )

    def _trained(self) -> Trained:
        measured = self.measured
        assert measured.best is not None and measured.last is not None
        return Trained(
            steps=self.trainer.steps,
            early_stop_step=measured.best_step,
            validation_loss=measured.best_loss,
            test=measured.best,
            test_at_end=measured.last,
            step_seconds=median(measured.step_seconds),
            seconds=measured.seconds,
            state_ratio=1.0,
            data_order=self.trainer.order.digest(0, self.trainer.steps),
            processes=self.ranks.world,
            gradient_bytes=gradient_bytes(self.trainer.model),
            early_state={},
        )


def _not_finite(what: str, step: int) -> FloatingPointError:
    return FloatingPointError(
        f"{what} was not finite at or before step {step}; nothing of it was saved. Lower the learning rate, clip the "
        "gradient, or warm up longer"
    )
