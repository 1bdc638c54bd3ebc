"""Rules about wrong input: a ValueError before any kernel starts, since kernels trust the shapes that they get."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sparseflow.testing.cases import Broken, Case

_OTHER_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)


def bad_input(case: Case) -> Broken:
    """ValueError for inputs of the wrong width and for values of the wrong length, forward and backward."""
    op, x = case.pack(), case.input(case.work.rows)
    values = op.pack_values(case.weight())
    dy = torch.ones_like(op.forward(x, values, None))
    narrow, wide = x[:, :-1], torch.cat([x, x[:, :1]], dim=1)
    wrong: dict[str, tuple[Tensor, Tensor]] = {"x too narrow": (narrow, values), "x too wide": (wide, values)}
    wrong["too many values"] = (x, values.new_ones(values.numel() + 1))
    if values.numel():
        wrong["too few values"] = (x, values.new_ones(values.numel() - 1))
    for what, (a, b) in wrong.items():
        yield from _refused(f"forward, {what}", partial(op.forward, a, b, None))
        yield from _refused(f"backward, {what}", partial(op.backward, dy, a, b, True))


def _refused(what: str, call: Callable[[], object]) -> Broken:
    try:
        call()
    except ValueError:
        return
    except _OTHER_ERRORS as error:
        yield f"{what} is a ValueError", f"it is a {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    else:
        yield f"{what} is a ValueError", "it was taken"
