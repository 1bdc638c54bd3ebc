"""What a search leaves in its folder, and takes up again: a finished round is there whole or not at all.

rewind.safetensors               theta_k, whole
round-03.plan.json               which backend runs each layer
round-03.progress.safetensors    a training in the middle, while there is one
round-03.trained.safetensors     the weights at the end of the newest round, which the next pruning reads
round-03.early.safetensors       the weights at early stop, of the newest round
round-03.ticket.safetensors      masks and the state to train from, with the metrics
round-03.scores.npy              one score for each test example, at early stop
round-03.json                    the metrics; written last: where it is, the round is done
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparseflow.files import Ticket, Weights, load, save
from sparseflow.files.atomic import atomic_write
from sparseflow.hardware.model import dense_state
from sparseflow.hardware.plan import Plan
from sparseflow.masks.masks import Masks
from sparseflow.training.progress import Progress
from sparseflow.training.trainer import Trained


class Records:
    """The records of one search in `folder`, which is made. None keeps nothing."""

    def __init__(self, folder: Path | None, plans: Mapping[int, Plan] | None = None) -> None:
        self.folder = folder
        # Plans of another run to replay, by round.
        self.plans = dict(plans or {})
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def finished_rounds(self) -> int:
        """How many rounds, from 0 on, are done."""
        if self.folder is None:
            return 0
        done = {int(m[1]) for path in self.folder.iterdir() if (m := re.fullmatch(r"round-(\d+)\.json", path.name))}
        return next(index for index in range(len(done) + 1) if index not in done)

    def tickets(self) -> Iterator[Ticket]:
        """The tickets of the rounds that are done."""
        for index in range(self.finished_rounds()):
            yield self.ticket(index)

    def ticket(self, index: int) -> Ticket:
        """The ticket of a round that is done."""
        path = self._path(index, "ticket.safetensors")
        found = load(path)
        if not isinstance(found, Ticket):
            raise ValueError(f"{path}: expected a ticket, got weights; remove {path.parent} to begin this search anew")
        return found

    def trained(self, index: int) -> Weights:
        """The weights and masks at the end of the newest round."""
        return self._weights(self._path(index, "trained.safetensors"))

    def early(self, index: int) -> Weights:
        """The weights at early stop of the newest round."""
        return self._weights(self._path(index, "early.safetensors"))

    def forget_plans(self) -> None:
        """Removes the plans of rounds that are not done, so that they are made anew."""
        if self.folder is not None:
            done = self.finished_rounds()
            for path in self.folder.glob("round-*.plan.json"):
                if int(path.name[6:8]) >= done:
                    path.unlink()

    def rewind_point(self, device: torch.device) -> dict[str, Tensor] | None:
        """theta_k, where it has been kept."""
        if self.folder is None or not (self.folder / "rewind.safetensors").exists():
            return None
        found = self._weights(self.folder / "rewind.safetensors")
        return {name: tensor.to(device) for name, tensor in found.state.items()}

    def begin(self, state: dict[str, Tensor]) -> None:
        """Keeps theta_0 where round 0 starts; a round 0 in its middle has kept the one that it started from."""
        if self.folder is not None and not self._path(0, "progress.safetensors").exists():
            self.keep_rewind_point(state)

    def keep_rewind_point(self, state: dict[str, Tensor]) -> None:
        """Keeps theta_k."""
        if self.folder is not None:
            save(Weights(state, Masks({}), {}), self.folder / "rewind.safetensors")

    def plan(self, index: int) -> Plan | None:
        """The plan of a round, as recorded here or as given to replay."""
        if self.folder is None or not self._path(index, "plan.json").exists():
            return self.plans.get(index)
        path = self._path(index, "plan.json")
        content = _read_json(path)
        try:
            return Plan.from_json(content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; remove it to plan the round anew") from None

    def keep_plan(self, index: int, plan: Plan) -> None:
        """Records the plan before its round starts."""
        if self.folder is not None:
            write_json(self._path(index, "plan.json"), plan.to_json())

    def progress(self, index: int, masks: Masks, seed: int, kind: str = "round") -> Progress | None:
        """The file of a training in the middle."""
        if self.folder is None:
            return None
        identity = {"kind": kind, "round": index, "masks": masks.digest, "seed": seed}
        return Progress(self._path(index, "progress.safetensors", kind), identity)

    def finish_round(
        self, index: int, model: nn.Module, rewind_point: dict[str, Tensor], ticket: Ticket, trained: Trained
    ) -> None:
        """Keeps everything of a trained round; the metrics last."""
        if self.folder is None:
            return
        if index == 0:
            self.keep_rewind_point(rewind_point)
        masks = ticket.masks
        save(Weights(dense_state(model), masks, {}), self._path(index, "trained.safetensors"), format="compact")
        early = Weights(_dense_names(trained.early_state, model), masks, {"step": trained.early_stop_step})
        save(early, self._path(index, "early.safetensors"), format="compact")
        save(ticket, self._path(index, "ticket.safetensors"))
        self.finish(index, ticket.provenance["metrics"], trained)
        for older in range(index):
            self._path(older, "trained.safetensors").unlink(missing_ok=True)
            self._path(older, "early.safetensors").unlink(missing_ok=True)

    def finish(self, index: int, metrics: object, trained: Trained, kind: str = "round") -> None:
        """Keeps the scores and then the metrics of a training, a round's or a control's."""
        if self.folder is None:
            return
        with atomic_write(self._path(index, "scores.npy", kind)) as file:
            np.save(file, trained.test.scores.numpy(), allow_pickle=False)
        write_json(self._path(index, "json", kind), metrics)

    def metrics(self, index: int, kind: str = "round") -> dict[str, Any] | None:
        """The metrics of a training that is done, else None."""
        if self.folder is None or not self._path(index, "json", kind).exists():
            return None
        return _read_json(self._path(index, "json", kind))

    def scores(self, index: int, kind: str = "round") -> NDArray[np.float32]:
        """The score of each test example, of a training that is done."""
        scores: NDArray[np.float32] = np.load(self._path(index, "scores.npy", kind), allow_pickle=False)
        return scores

    def _weights(self, path: Path) -> Weights:
        found = load(path)
        if not isinstance(found, Weights):
            raise ValueError(f"{path}: expected weights, got a ticket; remove {path.parent} to begin this search anew")
        return found

    def _path(self, index: int, what: str, kind: str = "round") -> Path:
        assert self.folder is not None
        return self.folder / f"{kind}-{index:02d}.{what}"


def describe(index: int, masks: Masks, plan: Plan | None, trained: Trained) -> dict[str, Any]:
    """The metrics of a trained network as plain data; accuracies are fractions, times are seconds."""
    return {
        "round": index,
        "density": masks.density,
        "kept": masks.kept,
        "total": {name: mask.numel() for name, mask in masks.items()},
        "backends": {} if plan is None else plan.backends,
        "steps": trained.steps,
        "early_stop_step": trained.early_stop_step,
        "validation_loss": trained.validation_loss,
        "test_accuracy": trained.test.accuracy,
        "test_loss": trained.test.loss,
        "final_test_accuracy": trained.test_at_end.accuracy,
        "final_test_loss": trained.test_at_end.loss,
        "step_seconds": trained.step_seconds,
        "state_ratio": trained.state_ratio,
        "data_order": trained.data_order,
        "processes": trained.processes,
        "seconds": trained.seconds,
    }


def write_json(path: Path, content: object) -> None:
    """Writes JSON aside and renames it."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); remove it to do its part of the search again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object; remove it to do its part of the search again")
    return found


def _dense_names(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    # A state dict of the sparse model, turned into the dense model's by loading it once.
    now = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    dense = dense_state(model)
    model.load_state_dict(now)
    return dense
