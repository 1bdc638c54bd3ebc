"""What a recipe's `algorithm` names, besides `imp`: methods that change masks in training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from sparseflow.masks.dynamic import SET, Dynamic, RigL
from sparseflow.masks.phases import ACDC, GMP, SPDF, Static
from sparseflow.resolve import call, choose

# Of the training's steps, when masks stop to change unless the recipe says so: as in Evci et al., 2020, §4.
_UNTIL = 0.75

_METHODS: dict[str, Callable[..., Dynamic]] = {
    "acdc": ACDC,
    "gmp": GMP,
    "rigl": RigL,
    "set": SET,
    "spdf": SPDF,
    "static": Static,
}


def make_dynamic(name: str, options: Mapping[str, Any], steps: int) -> Dynamic | None:
    """The method of that name, ours or the user's `module:function`; None for "imp", whose masks stay in training.

    `until` is three quarters of `steps` where the options leave it out. `ValueError` or `TypeError` for names and
    options that do not exist, and for numbers out of range.
    """
    if name == "imp":
        if options:
            raise ValueError(f"algorithm 'imp' takes its options under pruning:, got {dict(options)}")
        return None
    # "imp" stands there for the message, which lists the names.
    make = choose("algorithm", name, {"imp": make_dynamic, **_METHODS})
    if name in _METHODS and "until" in inspect.signature(make).parameters:
        options = {"until": round(_UNTIL * steps), **options}
    return cast(Dynamic, call(make, options, name))
