"""What a recipe's `algorithm` names.

`imp`, `prune-at-init`, a method that changes masks in training, or one that finds a strong ticket.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from sparseflow.masks.dynamic import SET, Dynamic, RigL
from sparseflow.masks.phases import ACDC, GMP, SPDF, Static
from sparseflow.masks.supermasks import EdgePopup, Supermask, Supermasks
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

_STRONG: dict[str, Callable[..., Supermasks]] = {"edge-popup": EdgePopup, "supermask": Supermask}

# Their masks stay in training, and what they prune stands under pruning.
PRUNING = ("imp", "prune-at-init")


def first_round(name: str) -> int:
    """The first round that is trained: 1 where the network is pruned before it is ever trained, or never is."""
    return 1 if name == "prune-at-init" or name in _STRONG else 0


def make_strong(name: str, options: Mapping[str, Any]) -> Supermasks | None:
    """The method of that name which learns masks over frozen weights; None for every other algorithm.

    `ValueError` or `TypeError` for options that do not exist, and for numbers out of range.
    """
    return cast(Supermasks, call(_STRONG[name], options, name)) if name in _STRONG else None


def make_dynamic(name: str, options: Mapping[str, Any], steps: int) -> Dynamic | None:
    """The method of that name, ours or the user's `module:function`; None for strong tickets and those in `PRUNING`.

    `until` is three quarters of `steps` where the options leave it out. `ValueError` or `TypeError` for names and
    options that do not exist, and for numbers out of range.
    """
    if name in PRUNING:
        if options:
            raise ValueError(f"algorithm {name!r} takes its options under pruning:, got {dict(options)}")
        return None
    if name in _STRONG:
        return None
    # Those stand there for the message, which lists the names.
    others = dict.fromkeys((*PRUNING, *_STRONG), make_dynamic)
    make = choose("algorithm", name, {**others, **_METHODS})
    if name in _METHODS and "until" in inspect.signature(make).parameters:
        options = {"until": round(_UNTIL * steps), **options}
    return cast(Dynamic, call(make, options, name))
