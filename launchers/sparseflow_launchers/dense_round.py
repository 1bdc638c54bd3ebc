"""One seed's dense round under DeepSpeed: trained, pruned on its shards, and put into the records of the search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sparseflow import zero_config
from sparseflow.files import Ticket
from sparseflow.hardware.model import load_dense_state
from sparseflow.masks import schedules
from sparseflow.masks.masks import Masks
from sparseflow.masks.sharded import assemble, prune_slices
from sparseflow.ranks import Ranks
from sparseflow.recipes import PruningSpec, Recipe, make_trainer
from sparseflow.runs import Run
from sparseflow.training.pruning import prunable_weights
from sparseflow.training.records import Records, describe
from sparseflow.training.trainer import Listener, Trained, Trainer
from sparseflow.zero_config import Cut
from sparseflow_launchers.dense_training import DenseTraining
from sparseflow_launchers.zero_checkpoints import ZeroCheckpoints
from sparseflow_launchers.zero_engine import make_zero_engine
from sparseflow_launchers.zero_files import ZeroFiles
from sparseflow_launchers.zero_slices import Engine, live_slices

Shapes = Mapping[str, tuple[int, ...]]


def check_pruning(spec: PruningSpec) -> None:
    """ValueError where the masks of round 1 cannot be found on shards."""
    if spec.rounds < 1:
        raise ValueError("pruning.rounds: expected at least 1 after a dense round under DeepSpeed, got 0")
    if spec.criterion != "magnitude":
        raise ValueError(f"pruning.criterion: expected magnitude after a round under DeepSpeed, got {spec.criterion}")
    if spec.importance is not None:
        raise ValueError(f"pruning.importance: expected none after a round under DeepSpeed, got {spec.importance}")
    if spec.pattern.name != "unstructured":
        raise ValueError(f"pruning.pattern: expected none after a round under DeepSpeed, got {spec.pattern.name}")


@dataclass(frozen=True)
class DenseRound:
    """How dense rounds are trained: DeepSpeed's settled configuration, and how a batch is cut."""

    config: Mapping[str, Any]
    cut: Cut
    save_every: float

    def train(self, run: Run, seed: int, listener: Listener, should_stop: Callable[[], bool]) -> None:
        """Trains round 0 of a seed, if that is not done, and records it with the masks of round 1; by all ranks.

        Rank 0 needs memory on its host for a few copies of the fp32 weights, as every rank of the sparse rounds will.
        """
        recipe = run.recipe
        about = {"seed": seed, "kind": "round", "round": 0}
        trainer = make_trainer(recipe, seed, lambda event: listener({**about, **event}))
        ranks = trainer.ranks
        records = Records(run.folder / "checkpoints" / f"seed-{seed}", ranks=ranks)
        if records.finished_rounds():
            return
        trainer.should_stop = should_stop
        weights = prunable_weights(trainer.model, recipe.pruning.param_filter)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        engine = make_zero_engine(trainer, trainer.model, self.config)
        try:
            checkpoints = ZeroCheckpoints(_folder(records), self._identity(recipe, seed, ranks), ranks)
            note: dict[str, Any] = {"prunable": {name: list(shape) for name, shape in shapes.items()}}
            trained = DenseTraining(
                trainer, engine, self.cut, checkpoints, recipe.pruning.rewind_to, note, self.save_every
            ).run()
            masks = first_masks(engine, shapes, recipe.pruning, ranks)
        finally:
            engine.destroy()
        self._record(trainer, recipe, records, checkpoints, trained, masks)
        checkpoints.keep({recipe.pruning.rewind_to, trainer.steps})
        metrics = records.metrics(0)
        assert metrics is not None
        if ranks.main:
            listener({"event": "trained", **about, **metrics})

    def _identity(self, recipe: Recipe, seed: int, ranks: Ranks) -> dict[str, Any]:
        return {
            "seed": seed,
            "processes": ranks.world,
            "stage": zero_config.stage(self.config),
            "dtype": zero_config.dtype(self.config),
            "accumulate": self.cut.accumulate,
            "training": recipe.training.model_dump(mode="json"),
        }

    def _record(
        self,
        trainer: Trainer,
        recipe: Recipe,
        records: Records,
        checkpoints: ZeroCheckpoints,
        trained: Trained,
        masks: Masks,
    ) -> None:
        spec, ranks = recipe.pruning, trainer.ranks
        everything = Masks.ones({name: mask.shape for name, mask in masks.items()})
        model = trainer.build()
        rewind_point: dict[str, Tensor] = {}
        if ranks.main:
            # Its own manifest is valid: it was checked, or written, by this process.
            load_dense_state(model, ZeroFiles(checkpoints.folder(trainer.steps)).state())
            rewind_point = dict(ZeroFiles(checkpoints.folder(spec.rewind_to)).state())
        provenance = {
            "algorithm": "imp",
            "round": 0,
            "metrics": describe(0, everything, None, trained),
            "seed": trainer.seed,
            "rewind": spec.rewind,
            "rewind_to": spec.rewind_to,
            "engine": zero_config.describe(self.config),
        }
        # What the others give is not looked at.
        ticket = Ticket(everything if ranks.main else Masks({}), rewind_point, None, provenance)
        # Of the early-stop step there is what was measured; of its weights, none are kept.
        records.finish_round(0, model, rewind_point, ticket, replace(trained, early_state=model.state_dict()))
        # Without them, where this ends here, the same masks are found in the weights that round 0 has left.
        records.keep_masks(1, masks)


def first_masks(engine: Engine, shapes: Shapes, spec: PruningSpec, ranks: Ranks) -> Masks:
    """The masks of round 1, whole, on every rank: pruned where the weights lie, without bringing them together.

    To the bit what pruning the whole fp32 weights gives. Traffic as `prune_slices` and `assemble`.
    """
    density = None if spec.density is None else schedules.get(spec.schedule)(spec.density)(1 / spec.rounds)
    slices = prune_slices(
        live_slices(engine, shapes),
        shapes,
        density=density,
        rate=spec.rate,
        allocation=spec.allocation,
        rates=spec.rates,
        floor=spec.floor,
        ranks=ranks,
    )
    return assemble(slices, shapes, ranks)


def _folder(records: Records) -> Path:
    assert records.folder is not None
    return records.folder / "round-00.zero"
