"""How several seeds' ends become the one end of their run."""

from typing import Any

import pytest

from sparseflow.training.trainer import Stopped
from sparseflow.workers import StopFlag, WorkerError, end

STOPPED = {"event": "stopped", "step": 7}
DIVERGED = {"event": "diverged", "text": "seed 1: the loss is not finite"}
WRONG = {"event": "wrong input", "text": "cannot save NaN"}
ERROR = {"event": "error", "text": "seed 1: Traceback"}


@pytest.mark.parametrize(
    ("events", "kind", "message"),
    [
        ([DIVERGED, WRONG], FloatingPointError, "not finite"),
        ([WRONG, DIVERGED], ValueError, "cannot save"),
        ([STOPPED, ERROR], WorkerError, "Traceback"),
        ([STOPPED, STOPPED], Stopped, "stopped at step 7"),
    ],
)
def test_the_first_failure_is_the_cause(events: list[dict[str, Any]], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        end(events, StopFlag())


def test_seeds_that_all_came_to_their_end_raise_nothing() -> None:
    end([], StopFlag())
