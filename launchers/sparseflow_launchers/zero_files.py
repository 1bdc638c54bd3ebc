"""The fp32 weights in a DeepSpeed checkpoint on the disk: by one process, without an engine, piece by piece.

A checkpoint of W ranks has, for stages 1 to 3, W files of flat fp32 weights without names, and a file that says which
parameters lie in them, in which order. Files are mapped, not read: memory holds what is being looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseflow.hardware.names import unwrapped
from sparseflow.masks.slices import Slice
from sparseflow_launchers.zero_layout import Run, runs_of_groups, runs_of_parameters
from sparseflow_launchers.zero_pickles import check_committed, numbered, read_pickle

# What our own runs add to DeepSpeed's file of the model.
OURS = "sparseflow"


class ZeroFiles:
    """One checkpoint: the folder that has DeepSpeed's `*_model_states.pt`.

    Raises ValueError with the reason where the folder was not committed by a run of ours, is not what was committed,
    or holds no complete checkpoint of a kind that is read here. `trusted` reads what others wrote: whoever made such
    files can run anything in this process.
    """

    def __init__(self, folder: Path, *, trusted: bool = False) -> None:
        if not trusted:
            check_committed(folder)
        models = numbered(folder, "_model_states.pt")
        if not models:
            raise ValueError(
                f"{folder}: expected DeepSpeed's *_model_states.pt, found none; give the folder of one step"
            )
        self.folder = folder
        self._model = read_pickle(models[0], trusted=trusted)
        paths = numbered(folder, "_optim_states.pt")
        self._shards: list[dict[str, Any]] = [
            read_pickle(path, trusted=trusted)["optimizer_state_dict"] for path in paths
        ]
        # What accumulates gradients in fp32 beside bf16 weights is stage 1, and does not say so.
        self.stage = int(self._shards[0].get("zero_stage", 1)) if self._shards else 0
        self._check_world()

    @property
    def about(self) -> dict[str, Any]:
        """What a run of ours noted: step, prunable names and so on. Empty where another program wrote it."""
        found = self._model.get(OURS, {})
        return dict(found)

    @property
    def names(self) -> list[str]:
        """The dense names of parameters and buffers, in the model's order."""
        return [unwrapped(name) for name in self._model["module"]]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the trained parameters, in the model's order."""
        if self.stage:
            found = {unwrapped(name): tuple(shape) for group in self._groups() for name, shape in group.items()}
        else:
            found = {name: tuple(tensor.shape) for name, tensor in self._masters.items()}
        return {name: found[name] for name in self.names if name in found}

    def slices(self, names: Collection[str] | None = None) -> list[Slice]:
        """The slices of all ranks: every weight of the parameters named, or of all, just once. Views of the files."""
        wanted = [name for name in self.shapes if names is None or name in names]
        if not self.stage:
            return [Slice(name, 0, self._masters[name].detach().reshape(-1)) for name in wanted]
        return [Slice(name, run.start, self._part(run)) for name in wanted for run in self._runs[name]]

    def tensor(self, name: str) -> Tensor:
        """One parameter or buffer, whole, in memory: fp32, but for buffers that are not of floating point."""
        name = self._shared.get(name, name)
        if name not in self.shapes:
            buffer: Tensor = self._module[name].detach()
            return buffer.to(torch.float32, copy=True) if buffer.is_floating_point() else buffer.clone()
        flat = torch.empty(prod(self.shapes[name]))
        for part in self.slices([name]):
            flat[part.start : part.stop] = part.values
        return flat.view(self.shapes[name])

    def state(self) -> Mapping[str, Tensor]:
        """Dense name → tensor, each one read when it is asked for."""
        return _State(self)

    @cached_property
    def _module(self) -> dict[str, Tensor]:
        return {unwrapped(name): tensor for name, tensor in self._model["module"].items()}

    @cached_property
    def _shared(self) -> dict[str, str]:
        shared: Mapping[str, str] = self._model.get("shared_params") or {}
        return {unwrapped(name): unwrapped(other) for name, other in shared.items()}

    @cached_property
    def _masters(self) -> dict[str, Tensor]:
        """Of stage 0: the parameters themselves, or the fp32 copies beside bf16 ones."""
        optimizer = self._model.get("optimizer") or {}
        if "fp32_groups" in optimizer:
            if "groups" not in self.about:
                raise ValueError(f"{self.folder}: stage 0 in bf16 does not say which weights are whose; use stage 1")
            names = [name for group in self.about["groups"] for name in group]
            masters = [tensor for group in optimizer["fp32_groups"] for tensor in group]
            return dict(zip(names, masters, strict=True))
        buffers = {unwrapped(name) for name in self._model["buffer_names"]}
        return {name: tensor for name, tensor in self._module.items() if name not in buffers}

    @cached_property
    def _runs(self) -> dict[str, list[Run]]:
        numels = [{unwrapped(name): prod(shape) for name, shape in group.items()} for group in self._groups()]
        world = len(self._shards)
        if self.stage == 3:
            every = {name: numel for group in numels for name, numel in group.items()}
            runs = runs_of_parameters(every, [len(flat) for flat in self._flats(0)], world)
        else:
            sizes = [[len(flat) for flat in self._flats(rank)] for rank in range(world)]
            runs = runs_of_groups(numels, sizes, self._shards[0].get("param_alignment_paddings"))
        found: dict[str, list[Run]] = {name: [] for name in self.shapes}
        for run in runs:
            found[run.name].append(run)
        return found

    def _groups(self) -> list[Mapping[str, tuple[int, ...]]]:
        return list(self._model["param_shapes"])

    def _flats(self, rank: int) -> list[Tensor]:
        key = "fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups"
        return list(self._shards[rank][key])

    def _part(self, run: Run) -> Tensor:
        return self._flats(run.rank)[run.flat].detach()[run.offset : run.offset + run.count]

    def _check_world(self) -> None:
        if not self._shards:
            return
        count = self._shards[0]["partition_count"]
        world = max(count) if isinstance(count, list) else int(count)
        if world != len(self._shards):
            raise ValueError(f"{self.folder}: expected the *_optim_states.pt of {world} ranks, got {len(self._shards)}")


class _State(Mapping[str, Tensor]):
    def __init__(self, files: ZeroFiles) -> None:
        self._files = files

    def __getitem__(self, name: str) -> Tensor:
        return self._files.tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files.names)

    def __len__(self) -> int:
        return len(self._files.names)
