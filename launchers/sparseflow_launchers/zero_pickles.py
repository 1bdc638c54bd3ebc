"""DeepSpeed's checkpoint files: pickles, which can run anything when they are read, so that few are.

They are read from a directory that one of our runs has committed and whose sha256 manifest they still match, and even
then with nothing but tensors and DeepSpeed's few classes allowed in them. `trusted` lifts both.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from sparseflow.files.commit import validate


def check_committed(folder: Path) -> None:
    """ValueError unless one of our runs has committed the folder, and it is still what was committed."""
    try:
        validate(folder)
    except ValueError as error:
        raise ValueError(
            f"{error}. DeepSpeed's files can run anything when they are read, so that only what a run of sparseflow "
            "has committed is; if you know who wrote these, pass trusted=True or --trust"
        ) from None


def numbered(folder: Path, ending: str) -> list[Path]:
    """The files of all ranks that end so, by rank. ValueError where a number is missing, or a model-parallel part."""
    found: dict[int, Path] = {}
    for path in folder.glob(f"*{ending}"):
        place = re.fullmatch(rf"(?:(?:bf16_)?zero_pp_rank_(\d+)_)?mp_rank_(\d+){re.escape(ending)}", path.name)
        if place is None or int(place[2]):
            raise ValueError(f"{path}: expected a checkpoint without model, pipeline or expert parallelism")
        found[int(place[1] or 0)] = path
    missing = [rank for rank in range(max(found, default=-1) + 1) if rank not in found]
    if missing:
        raise ValueError(
            f"{folder}: expected *{ending} of every rank, found none of rank {', '.join(map(str, missing))}"
        )
    return [found[rank] for rank in sorted(found)]


def read_pickle(path: Path, *, trusted: bool = False, mapped: bool = True) -> dict[str, Any]:
    """What DeepSpeed saved, its tensors `mapped` from the file or read.

    ValueError for anything that DeepSpeed does not write by itself; `trusted` takes and runs that too.
    """
    try:
        with torch.serialization.safe_globals(_classes()):
            found = torch.load(path, map_location="cpu", mmap=mapped, weights_only=not trusted)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: expected what DeepSpeed writes by itself, got: {str(error).splitlines()[0]}; if you know who "
            "wrote it, pass trusted=True or --trust"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a file of DeepSpeed's, got a {type(found).__name__}")
    return found


def _classes() -> list[Any]:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
