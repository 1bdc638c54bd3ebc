"""What a recipe's `algorithm` names: `imp`, `prune-at-init`, or a method that changes masks in training."""

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


# Their masks stay in training, and what they prune stands under pruning.
PRUNING = ("imp", "prune-at-init")


def first_round(name: str) -> int:
    """The first round that is trained: 1 where the network is pruned before it is ever trained."""
    return 1 if name == "prune-at-init" else 0


def make_dynamic(name: str, options: Mapping[str, Any], steps: int) -> Dynamic | None:
    """The method of that name, ours or the user's `module:function`; None for those in `PRUNING`.

    `until` is three quarters of `steps` where the options leave it out. `ValueError` or `TypeError` for names and
    options that do not exist, and for numbers out of range.
    """
    if name in PRUNING:
        if options:
            raise ValueError(f"algorithm {name!r} takes its options under pruning:, got {dict(options)}")
        return None
    # Those stand there for the message, which lists the names.
    make = choose("algorithm", name, {**dict.fromkeys(PRUNING, make_dynamic), **_METHODS})
    if name in _METHODS and "until" in inspect.signature(make).parameters:
        options = {"until": round(_UNTIL * steps), **options}
    return cast(Dynamic, call(make, options, name))
