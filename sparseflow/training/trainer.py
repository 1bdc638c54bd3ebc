"""Trainer: trains one network for a number of steps, on whatever accelerate finds.

Steps are the unit. What a step does is a pure function of (seed, step): its examples, its learning rate, and the
numbers that dropout draws. So rewinding to step k is starting at k, and a resumed run repeats nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sparseflow import ranks
from sparseflow.data import Data
from sparseflow.hardware.model import param_groups
from sparseflow.hardware.optimizers import check_optimizer
from sparseflow.hardware.streaming.execution import stream_of
from sparseflow.masks.dynamic import Dynamic
from sparseflow.ranks import Ranks
from sparseflow.training.engines import EngineName
from sparseflow.training.evaluation import Loss, cross_entropy
from sparseflow.training.order import Order
from sparseflow.training.progress import Progress
from sparseflow.training.schedules import Schedule, constant
from sparseflow.training.seeds import build_seeded, derive
from sparseflow.training.steps import Stopped as Stopped
from sparseflow.training.steps import Trained as Trained
from sparseflow.training.steps import Training
from sparseflow.training.streaming import Streaming

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]
# What happens during training, as plain data: {"event": "step", "step": 100, "loss": 0.3, ...}.
Listener = Callable[[dict[str, Any]], None]


class Trainer:
    """How networks of one task are trained; `imp`, controls and `train` use it again and again.

    `model` is a module, or a function that makes one from torch's global RNG (needed by controls that draw new
    weights; it is called under the run's seed). `optimizer` takes parameters or groups: partial(torch.optim.Adam,
    lr=1e-3, fused=True). `weight_decay` applies to logical matrices only; `groups` makes other groups of a model and
    that decay, such as `muon_groups`. `schedule` is the factor on the learning rate at a step. `clip` bounds the
    gradient norm.

    A step is a batch of `batch_size` examples, cut into as many micro-batches as there are ranks times `accumulate`;
    each rank does its own, in order of the ranks. So two processes train, to the last bit, what one does that
    accumulates two micro-batches; BatchNorm alone sees the difference, for it normalises a micro-batch. On many ranks
    `engine` is "ddp" or "fsdp2". With `stream`, weights and optimizer state live in a store, and the model may be
    larger than memory, or on the meta device.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        data: Data,
        *,
        optimizer: MakeOptimizer,
        steps: int,
        batch_size: int,
        seed: int = 0,
        loss: Loss = cross_entropy,
        schedule: Schedule | None = None,
        weight_decay: float = 0.0,
        clip: float | None = None,
        accumulate: int = 1,
        evaluate_every: int | None = None,
        accelerator: Accelerator | None = None,
        engine: EngineName = "ddp",
        stream: Streaming | None = None,
        listener: Listener | None = None,
        groups: Callable[[nn.Module, float], list[dict[str, Any]]] | None = None,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}")
        self.ranks = ranks.current()
        _check_batches(batch_size, accumulate * (1 if stream is None else stream.systems), self.ranks)
        if evaluate_every is not None and evaluate_every < 1:
            raise ValueError(f"evaluate_every: expected at least 1 step, got {evaluate_every}")
        for name, split in (("validation", data.validation), ("test", data.test)):
            if not len(split):
                raise ValueError(f"data: expected at least one example in the {name} split, got none")
        self.data = data
        self.make_optimizer, self.groups = optimizer, groups
        self.steps = steps
        self.seed = seed
        self.loss = loss
        self.schedule = schedule or constant()
        self.weight_decay = weight_decay
        self.clip = clip
        # Of one process.
        self.accumulate = accumulate * (1 if stream is None else stream.systems)
        self.evaluate_every = evaluate_every or max(1, steps // 20)
        self.order = Order(len(data.train), batch_size, derive(seed, "data"))
        self.engine: EngineName = engine
        # Called on every rank.
        self.listener: Listener = listener or (lambda event: None)
        # Asked at each step; a signal handler may answer True.
        self.should_stop: Callable[[], bool] = lambda: False
        self._accelerator = accelerator
        self._build = None if isinstance(model, nn.Module) else model
        # The result of the last training that `imp` ran.
        self.last: Trained | None = None
        self.stream = stream
        self.model = self._begin(model)
        if (steps_of_theirs := self.accelerator.gradient_accumulation_steps) != 1:
            raise ValueError(
                f"accelerator: expected gradient_accumulation_steps=1, got {steps_of_theirs}, which would divide every "
                "loss; pass accumulate= to Trainer instead"
            )

    @property
    def accelerator(self) -> Accelerator:
        if self._accelerator is None:
            # Unless it is told so, accelerate sees no launch of several processes on a machine without GPUs.
            self._accelerator = Accelerator(cpu=True) if self._on_cpus() else Accelerator()
        return self._accelerator

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def build(self, *labels: object) -> nn.Module:
        """A new model under a seed of its own: `build()` is the run's, `build("reinit", 3)` another draw."""
        if self._build is None:
            raise ValueError(
                "new weights need a function that makes the model, and this Trainer was given a module; "
                "pass the function instead: Trainer(lambda: MyModel(), ...)"
            )
        return build_seeded(self._build, derive(self.seed, "init", *labels)).to(self.device)

    def stopping(self) -> bool:
        """Whether any rank was asked to stop; all ranks must ask alike."""
        return bool(self.ranks.sum(torch.tensor([int(self.should_stop())])).item())

    def sample(self) -> Tensor:
        """The inputs of the first micro-batch, for plans and proofs."""
        indices = self.order.indices(0).chunk(self.accumulate * self.ranks.world)[0]
        x, _ = self.data.train.batch(indices)
        return x.to(self.device)

    def batches(self, count: int) -> FirstBatches:
        """Inputs and targets of the first steps, as criteria take them: of each, this rank's share."""
        return FirstBatches(self, count)

    def train(
        self,
        model: nn.Module,
        *,
        start: int = 0,
        schedule: Schedule | None = None,
        at_step: dict[int, Callable[[], None]] | None = None,
        progress: Progress | None = None,
        dynamic: Dynamic | None = None,
    ) -> Trained:
        """Trains the model in place from step `start` to the last, with a fresh optimizer.

        `at_step` calls functions before the step of that number (`steps` for after the last). `progress` saves what
        has been done and resumes it. Raises Stopped when asked to stop, FloatingPointError where the loss is not
        finite, and leaves the final weights in the model.
        """
        if not 0 <= start < self.steps:
            raise ValueError(f"start: expected a step in [0, {self.steps}), got {start}")
        if dynamic is not None and dynamic.settled > self.steps:
            raise ValueError(
                f"{type(dynamic).__name__}: its masks have their last density after {dynamic.settled} steps, and the "
                f"training has {self.steps}; end them earlier, or train longer"
            )
        if dynamic is not None and stream_of(model) is not None and (dynamic.uses_gradients or dynamic.replaces_step):
            raise ValueError(
                f"{type(dynamic).__name__} needs the gradients of pruned weights, which a streamed model never sends; "
                "train without stream, or with masks that change by the weights alone, as SET's do"
            )
        run = Training(self, model, start, schedule or self.schedule, progress, dynamic)
        began = time.perf_counter()
        for step in run.remaining():
            if at_step and step in at_step:
                at_step[step]()
            run.step(step)
        if at_step and self.steps in at_step:
            at_step[self.steps]()
        return run.finish(began)

    def stepper(self, model: nn.Module, dynamic: Dynamic | None = None) -> Callable[[int], None]:
        """A function that does the optimizer step of a number, nothing else: for benchmarks of the step itself."""
        return Training(self, model, 0, self.schedule, None, dynamic).step

    def optimizer_of(self, model: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimizer of a model. `ValueError` where it turns out to be another one's."""
        decay, groups = self.weight_decay, self.groups
        if groups is None and decay:
            groups = param_groups
        optimizer = self.make_optimizer(list(model.parameters()) if groups is None else groups(model, decay))
        check_optimizer(optimizer, model)
        return optimizer

    def close(self) -> None:
        """Lets others open the store of a streamed model; the trainer cannot train any more. Any other does nothing."""
        found = stream_of(self.model)
        if found is not None:
            found.close()

    def _begin(self, model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
        stream = self.stream
        if stream is None:
            return model.to(self.device) if isinstance(model, nn.Module) else self.build()
        stream.check(self.clip, self.ranks.world, self.accelerator.state.mixed_precision)

        def begin() -> nn.Module:
            made = model if isinstance(model, nn.Module) else model()
            return stream.begin(made, self.optimizer_of, self.accumulate // stream.systems, self.device)

        # What is on the meta device is initialised here.
        return build_seeded(begin, derive(self.seed, "init"))

    def _on_cpus(self) -> bool:
        return self.ranks.world > 1 and not torch.cuda.is_available()


@dataclass(frozen=True)
class FirstBatches:
    """See `Trainer.batches`. They are fetched when they are looked at, each time anew."""

    trainer: Trainer
    count: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        ranks = self.trainer.ranks
        for step in range(self.count):
            yield self.trainer.data.train.batch(self.trainer.order.indices(step).chunk(ranks.world)[ranks.rank])


def _check_batches(batch_size: int, accumulate: int, launched: Ranks) -> None:
    if accumulate < 1 or batch_size % accumulate:
        raise ValueError(f"accumulate: expected a divisor of batch_size {batch_size}, got {accumulate}")
    if batch_size % (accumulate * launched.world):
        raise ValueError(
            f"batch_size: expected a multiple of {launched.world} processes × accumulate={accumulate}, got {batch_size}"
        )
