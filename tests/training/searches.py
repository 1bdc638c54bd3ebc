"""A short search in a folder."""

from pathlib import Path
from typing import Any

from tiny_task import tiny_trainer

import sparseflow as sf
from sparseflow.files import Ticket
from sparseflow.training.records import Records
from sparseflow.training.trainer import Trainer


def search(folder: Path, trainer: Trainer | None = None, **changes: Any) -> list[Ticket]:
    """Two rounds, rewound to step 2, evaluated first at step 3: the first stops come before there is a best step."""
    trainer = trainer or tiny_trainer(evaluate_every=3)
    arguments: dict[str, Any] = {"rounds": 2, "rate": 0.5, "floor": 1, "rewind_to": 2, "backend": "dense-compact"}
    return list(sf.imp(trainer, records=Records(folder), **{**arguments, **changes}))


def stop_after(trainer: Trainer, steps: int) -> None:
    """Has the trainer stop when it has asked this often whether to."""
    asked = iter(range(1000))
    trainer.should_stop = lambda: next(asked) >= steps
