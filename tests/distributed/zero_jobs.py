"""What the processes of a launch do under DeepSpeed, and what they find, as JSON. Forked from `zero_zygote`."""

from __future__ import annotations

import itertools
import json
import os
import signal
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparseflow.masks.masks import Masks
from sparseflow.masks.select import prune_tensors
from sparseflow.masks.sharded import assemble, prune_slices
from sparseflow.ranks import Ranks, current
from sparseflow.recipes import Recipe, load_recipe, make_trainer
from sparseflow.training.pruning import prunable_weights
from sparseflow.training.trainer import Trainer
from sparseflow.zero_config import settle
from sparseflow_launchers import dense, dense_training, imp
from sparseflow_launchers.dense_training import DenseTraining
from sparseflow_launchers.zero_checkpoints import ZeroCheckpoints
from sparseflow_launchers.zero_engine import InFloat32, load_cpu_library, make_zero_engine, set_rate
from sparseflow_launchers.zero_files import ZeroFiles
from sparseflow_launchers.zero_masks import hold_masks
from sparseflow_launchers.zero_slices import live_slices

CONFIGS = Path(__file__).parents[2] / "launchers" / "configs"
RATE = 0.3
# Few weights are small, and their numbers odd: parts of ranks are uneven and padded.
MODEL = "model.options={context: 8, layers: 2, heads: 3, width: 9}"


def warm_up() -> None:
    """Imports what is imported late, in the process that is forked, and compiles what is compiled once."""
    # Every engine asks whether its optimizer is this one, whose module imports torch's compiler.
    import deepspeed.runtime.zero.muon.muon_optimizer
    import torch.utils.cpp_extension

    assert deepspeed
    load_cpu_library()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def stages(out: str, text: str, only: list[str]) -> None:
    """Goes through the configurations named; rank 0 writes what was found under their names into `out`/found.json."""
    dist.init_process_group("gloo")
    ranks = current()
    found = {}
    for name in only:
        found[name] = _Stage(Path(out) / name, name, text, ranks).look()
    if ranks.main:
        (Path(out) / "found.json").write_text(json.dumps(found))
    ranks.barrier()


def train(arguments: list[str], **at: list[int]) -> None:
    """`python -m sparseflow_launchers.dense`. `die`, `stop` and `nan` say at which rank and step that happens."""
    step = DenseTraining._step

    def stepping(self: DenseTraining, number: int) -> None:
        here = [self.ranks.rank, number]
        if here == at.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if here == at.get("stop"):
            os.kill(os.getpid(), signal.SIGTERM)
        if here == at.get("nan"):
            loss = self.trainer.loss
            self.trainer.loss = lambda output, target: loss(output, target) * float("nan")
        step(self, number)

    dense_training.DenseTraining._step = stepping  # type: ignore[method-assign]
    dense.app(arguments, standalone_mode=False)


def search(arguments: list[str]) -> None:
    """`python -m sparseflow_launchers.imp`."""
    imp.app(arguments, standalone_mode=False)


JOBS: dict[str, Callable[..., None]] = {"stages": stages, "train": train, "search": search}


class _Stage:
    """One configuration: a few steps, and all that is promised of them."""

    def __init__(self, folder: Path, name: str, text: str, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        recipe = load_recipe("gpt", [MODEL, f"data.options={{context: 8, path: {text}}}", "training.batch_size=12"])
        config = json.loads((CONFIGS / f"{name}.json").read_text())
        # Small enough that this network has weights above and below, and buckets that fill.
        config["zero_optimization"].update(stage3_param_persistence_threshold=100, reduce_bucket_size=500)
        settled, _ = settle(config, recipe.training, ranks.world)
        self.trainer: Trainer = make_trainer(recipe, 1)
        model = self.trainer.model
        self.shapes = _shapes(recipe, self.trainer)
        self.every = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
        self.made = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        self.engine: Any = make_zero_engine(self.trainer, model, settled)
        self.network = InFloat32(self.engine)
        self.steps = itertools.count()

    def look(self) -> dict[str, Any]:
        found: dict[str, Any] = {"begins_as_made": self._begins_as_made()}
        self._train(3)
        whole = self._gathered()
        slices = prune_slices(live_slices(self.engine, self.shapes), self.shapes, rate=RATE, ranks=self.ranks)
        masks = assemble(slices, self.shapes, self.ranks)
        found["digest"] = masks.digest
        found["live_equals_whole"] = masks == _pruned(whole, self.shapes)
        checkpoints = ZeroCheckpoints(self.folder, {}, self.ranks)
        checkpoints.save(self.engine, 3, {}, {}, {"prunable": {key: list(one) for key, one in self.shapes.items()}})
        found |= self._look_at_files(checkpoints, whole, masks)
        found["resumes"] = self._resumes(checkpoints)
        found |= self._hold(masks)
        self.engine.destroy()
        return found

    def _train(self, count: int) -> None:
        trainer, ranks = self.trainer, self.ranks
        for step in itertools.islice(self.steps, count):
            set_rate(self.engine, trainer.schedule(100))
            x, y = trainer.data.train.batch(trainer.order.indices(step).chunk(ranks.world)[ranks.rank])
            self.engine.backward(trainer.loss(self.network(x), y))
            self.engine.step()

    def _gathered(self) -> dict[str, Tensor]:
        """The whole fp32 weights, each added up from zeros and one rank's slices."""
        sizes = [torch.Size(shape).numel() for shape in self.every.values()]
        flat = torch.zeros(sum(sizes))
        whole = {key: part.view(self.every[key]) for key, part in zip(self.every, flat.split(sizes))}
        for part in live_slices(self.engine):
            whole[part.name].view(-1)[part.start : part.stop] += part.values
        self.ranks.sum(flat)
        return whole

    def _begins_as_made(self) -> bool:
        """Whether making the engine has moved no weight, but for the rounding to bf16."""
        dtype, whole = self.engine.get_data_types()[0], self._gathered()
        return all(torch.equal(whole[key], made.to(dtype).float()) for key, made in self.made.items())

    def _look_at_files(self, checkpoints: ZeroCheckpoints, whole: Mapping[str, Tensor], masks: Masks) -> dict[str, Any]:
        files = ZeroFiles(checkpoints.folder(3))
        slices = files.slices(self.shapes)
        offline = assemble(prune_slices(slices, self.shapes, rate=RATE), self.shapes)
        return {
            "files_equal_live": files.shapes == self.every
            and all(torch.equal(files.tensor(key), one) for key, one in whole.items()),
            "files_stage": files.stage,
            "offline_equals_live": offline == masks,
            "parts": sorted(path.name for path in checkpoints.folder(3).iterdir()),
        }

    def _resumes(self, checkpoints: ZeroCheckpoints) -> bool:
        """Whether two steps after taking up the checkpoint are those that would have followed."""
        self._train(2)
        before = self._gathered()
        checkpoints.load(self.engine, 3)
        self.steps = itertools.count(3)
        self._train(2)
        after = self._gathered()
        return all(torch.equal(one, after[key]) for key, one in before.items())

    def _hold(self, masks: Masks) -> dict[str, Any]:
        held = hold_masks(self.engine, masks)
        at_once = held.revived(self.ranks)
        before = self._gathered()
        self._train(2)
        later, after = held.revived(self.ranks), self._gathered()
        held.release()
        self._train(1)
        return {
            "revived_at_once": at_once,
            "revived_later": later,
            "survivors_move": all(not torch.equal(before[key][mask], after[key][mask]) for key, mask in masks.items()),
            "pruned_in_whole": sum(int(after[key][~mask].count_nonzero()) for key, mask in masks.items()),
            "revived_when_released": sum(held.revived(self.ranks).values()),
        }


def _shapes(recipe: Recipe, trainer: Trainer) -> dict[str, tuple[int, ...]]:
    weights = prunable_weights(trainer.model, recipe.pruning.param_filter)
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def _pruned(whole: Mapping[str, Tensor], shapes: Mapping[str, Any]) -> Masks:
    return prune_tensors({name: whole[name] for name in shapes}, rate=RATE)
