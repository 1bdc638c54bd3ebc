"""What a search leaves in its folder, and takes up again. Each directory in it is committed: there whole or not at all.

rewind/              theta_k, whole
masks-03/            masks of a round that were made elsewhere, where they were
plan-03/             which backend runs each layer
round-03.training/   checkpoints of a training in the middle: its newest two
round-03.weights/    the weights at the end and at early stop, and a copy of theta_k; of the newest two rounds
round-03/            ticket, metrics, and a score for each test example; where it is, the round is done
reinit-03/           metrics and scores of a control

What is damaged is reported, and what was saved before it is taken: the checkpoint before, the round before, the copy
of theta_k. Where there is nothing of that kind, a ValueError says so; nothing begins anew in silence.
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

from sparseflow.atomic import atomic_write
from sparseflow.files import Ticket, Weights
from sparseflow.files.part import Part, array_part, json_part, tensors_part
from sparseflow.files.readers import read_array, read_json, read_tensors, read_ticket, read_weights
from sparseflow.files.shelf import Shelf
from sparseflow.files.sparse_safetensors import sparse_part
from sparseflow.hardware.model import current_masks, dense_state
from sparseflow.hardware.plan import Plan
from sparseflow.hardware.streaming.execution import stream_of
from sparseflow.hardware.weights import keep
from sparseflow.masks.masks import Masks, pack_bits, unpack_bits
from sparseflow.ranks import ALONE, Ranks
from sparseflow.training import rewind
from sparseflow.training.progress import Progress
from sparseflow.training.retention import clear_done, count_rounds, name_of, plan_of, training_of, weights_of
from sparseflow.training.trainer import Trained

_TICKET, _METRICS, _SCORES, _MASKS = "ticket.safetensors", "metrics.json", "scores.npy", "masks.safetensors"
_PLAN, _TRAINED, _EARLY = "plan.json", "trained.safetensors", "early.safetensors"


class Records:
    """The records of one search in `folder`, which is made. None keeps nothing.

    first: the first round that is trained. All ranks call every method alike; rank 0 writes, all read the one folder.
    """

    def __init__(
        self, folder: Path | None, plans: Mapping[int, Plan] | None = None, ranks: Ranks = ALONE, first: int = 0
    ) -> None:
        self.folder, self.ranks, self.first = folder, ranks, first
        # Plans of another run to replay, by round.
        self.plans = dict(plans or {})
        self._kept = None if folder is None else Shelf(folder, ranks)
        self._trainings: dict[str, Shelf] = {}
        self._finished: int | None = None

    def finished_rounds(self) -> int:
        """The number of the first round that is not done, or 0 where none is.

        The first call clears what a process that died has left, and checks all rounds: where the newest one is
        damaged, it does not count. `ValueError` where what is left does not suffice to go on.
        """
        if self._kept is None:
            return 0
        if self._finished is None:
            self._kept.sweep()
            self._finished = count_rounds(self._kept, self.first)
            clear_done(self._kept, self._finished)
            for index in range(max(1, self.first), self._finished):
                if (plan := self._plan_in_ticket(index)) is not None:
                    self.keep_plan(index, plan)
        return self._finished

    def tickets(self) -> Iterator[Ticket]:
        """The tickets of the rounds that are done."""
        for index in range(self.first, self.finished_rounds()):
            yield self.ticket(index)

    def ticket(self, index: int) -> Ticket:
        """The ticket of a round that is done."""
        return self._shelf.read(name_of(index), _TICKET, read_ticket)

    def trained(self, index: int) -> Weights:
        """The weights and masks at the end of the newest round."""
        return self._shelf.read(weights_of(index), _TRAINED, read_weights)

    def early(self, index: int) -> Weights:
        """The weights at early stop of the newest round."""
        return self._shelf.read(weights_of(index), _EARLY, read_weights)

    def forget_plans(self) -> None:
        """Removes the plans of rounds that are not done, so that they are made anew."""
        if self._kept is not None:
            done = self.finished_rounds()
            for name in self._kept.names():
                if (found := re.fullmatch(r"plan-(\d+)", name)) and int(found[1]) >= done:
                    self._kept.remove(name)

    def rewind_point(self, device: torch.device, model: nn.Module | None = None) -> dict[str, Tensor] | None:
        """theta_k, where it has been kept; from the copy beside a round's weights where its own directory is damaged.

        `model`: whose it is; a streamed one has it in mapped files. `ValueError` where it is damaged and there is no
        copy.
        """
        if self._kept is None or (self._rewind.digest is None and not self._has_begun()):
            return None
        copies = [weights_of(index) for index in reversed(range(self.first, self.finished_rounds()))]
        found = {name: tensor.to(device) for name, tensor in self._rewind.read(copies).items()}
        return found if model is None or stream_of(model) is None else keep(model, found)

    def begin(self, state: dict[str, Tensor]) -> None:
        """Keeps theta_0 where the first round starts; where that is in its middle, it has kept its own."""
        if self._kept is not None and not self._has_begun():
            self.keep_rewind_point(state)

    def _has_begun(self) -> bool:
        """Whether anything rests on the rewind point."""
        inside = self._training(self.first)
        return self.finished_rounds() > 0 or any(inside.valid(name) for name in inside.names())

    def _training(self, index: int, kind: str = "round") -> Shelf:
        name = training_of(index, kind)
        if name not in self._trainings:
            self._trainings[name] = Shelf(self._shelf.folder / name, self.ranks)
            self._trainings[name].sweep()
        return self._trainings[name]

    def keep_rewind_point(self, state: dict[str, Tensor]) -> None:
        """Keeps theta_k, which is rank 0's."""
        if self._kept is not None:
            self._rewind.keep(state)

    def plan(self, index: int) -> Plan | None:
        """The plan of a round, as recorded here or as given to replay.

        Of a round that is done its ticket has it too. `ValueError` where it is damaged, and was not in a ticket.
        """
        name = plan_of(index)
        if self._kept is None or name not in self._kept.names():
            return self.plans.get(index)
        if self._kept.valid(name) is not None:
            return Plan.from_json(self._kept.read(name, _PLAN, read_json))
        plan = self._plan_in_ticket(index) if self._kept.valid(name_of(index)) else None
        if plan is None:
            raise ValueError(f"{self.folder}/{name} is damaged; remove it to plan the round anew")
        return plan

    def _plan_in_ticket(self, index: int) -> Plan | None:
        """Of a round whose own directory of it is missing or damaged."""
        recorded = self.ticket(index).plan if self._shelf.valid(plan_of(index)) is None else None
        return None if recorded is None else Plan.from_json(recorded)

    def keep_plan(self, index: int, plan: Plan) -> None:
        """Records the plan before its round starts. It is rank 0's."""
        if self._kept is not None and self._kept.valid(plan_of(index)) is None:
            self._kept.commit(plan_of(index), lambda: {_PLAN: json_part(plan.to_json())})

    def keep_masks(self, index: int, masks: Masks) -> None:
        """Records masks of a round that were made elsewhere, such as from the shards of a dense round. Rank 0's.

        They are found in the weights of the round before, which is finished first: finishing it removes older ones.
        """
        if self._kept is not None:
            shapes = {name: list(mask.shape) for name, mask in masks.items()}
            about: dict[str, Any] = {"shapes": shapes, "digest": masks.digest}

            def parts() -> dict[str, Part]:
                return {_MASKS: tensors_part({name: pack_bits(mask.cpu()) for name, mask in masks.items()})}

            self._kept.commit(f"masks-{index:02d}", parts, about)

    def masks(self, index: int) -> Masks | None:
        """The masks that `keep_masks` recorded, on the CPU, or None. `ValueError` where they are damaged."""
        name = f"masks-{index:02d}"
        if self._kept is None or name not in self._kept.names():
            return None
        manifest = self._kept.valid(name)
        if manifest is None:
            raise ValueError(f"{self.folder}/{name} is damaged; make these masks again, or remove it to prune anew")
        bits = self._kept.read(name, _MASKS, read_tensors)
        shapes: Any = manifest.about["shapes"]
        # In the order of the parameters that they were given in: it breaks ties.
        return Masks({name: unpack_bits(bits[name], tuple(shape)) for name, shape in shapes.items()})

    def progress(
        self, index: int, masks: Masks, seed: int, kind: str = "round", token: str | None = None
    ) -> Progress | None:
        """The checkpoints of a training in the middle. token: see `Progress`."""
        if self._kept is None:
            return None
        identity: dict[str, Any] = {"kind": kind, "round": index, "masks": masks.digest, "seed": seed}
        if index > 0 or kind != "round":
            # Round 0 is what makes the rewind point.
            identity["rewind"] = self._rewind.digest
        plan = self.plan(index)
        recorded: Any = None if plan is None else plan.to_json()
        return Progress(
            self._training(index, kind),
            identity,
            about=lambda: {"plan": recorded, "rewind": self._rewind.digest},
            token=token,
        )

    def finish_round(
        self, index: int, model: nn.Module, rewind_point: dict[str, Tensor], ticket: Ticket, trained: Trained
    ) -> None:
        """Keeps everything of a trained round; then removes what only older rounds needed. All of it is rank 0's."""
        if self._kept is None:
            return
        if index == 0:
            self.keep_rewind_point(rewind_point)

        def weights() -> dict[str, Part]:
            early = _early(trained, model, ticket.masks)
            return {
                _TRAINED: sparse_part(Weights(dense_state(model), ticket.masks, {}), "compact"),
                _EARLY: sparse_part(early, "compact"),
                rewind.FILE: tensors_part(rewind_point),
            }

        # What was found in an earlier training of this round does not fit this one's weights.
        self._kept.remove(f"masks-{index + 1:02d}")
        self._kept.commit(weights_of(index), weights)
        self._finish(index, ticket.provenance["metrics"], trained, "round", ticket)
        self._finished = index + 1
        clear_done(self._kept, self._finished)

    def finish(self, index: int, metrics: object, trained: Trained, kind: str) -> None:
        """Keeps the scores and the metrics of a control."""
        if self._kept is not None:
            self._finish(index, metrics, trained, kind, None)

    def _finish(self, index: int, metrics: object, trained: Trained, kind: str, ticket: Ticket | None) -> None:
        def parts() -> dict[str, Part]:
            found = {_METRICS: json_part(metrics), _SCORES: array_part(trained.test.scores.numpy())}
            return found if ticket is None else {_TICKET: sparse_part(ticket, "compact"), **found}

        self._shelf.commit(name_of(index, kind), parts)
        self._shelf.remove(training_of(index, kind))
        self._trainings.pop(training_of(index, kind), None)

    def metrics(self, index: int, kind: str = "round") -> dict[str, Any] | None:
        """The metrics of a training that is done, else None."""
        if self._kept is None or self._kept.valid(name_of(index, kind)) is None:
            return None
        return self._kept.read(name_of(index, kind), _METRICS, read_json)

    def scores(self, index: int, kind: str = "round") -> NDArray[np.float32]:
        """The score of each test example, of a training that is done."""
        return self._shelf.read(name_of(index, kind), _SCORES, read_array)

    @property
    def _rewind(self) -> rewind.RewindPoint:
        return rewind.RewindPoint(self._shelf)

    @property
    def _shelf(self) -> Shelf:
        assert self._kept is not None
        return self._kept


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
        "gradient_bytes": trained.gradient_bytes,
        "seconds": trained.seconds,
    }


def write_json(path: Path, content: object) -> None:
    """Writes JSON aside and renames it."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def _early(trained: Trained, model: nn.Module, masks: Masks) -> Weights:
    # A state dict of the sparse model, turned into the dense model's by loading it once. The masks of then may be
    # others than those of the end.
    now = keep(model, model.state_dict())
    model.load_state_dict(trained.early_state)
    early = Weights(dense_state(model), Masks({**masks, **current_masks(model)}), {"step": trained.early_stop_step})
    model.load_state_dict(now)
    return early
