"""Points of a program that have a name, at which a test acts: it kills the process, mostly."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any


def arm(function: str, when: str, number: int, act: Callable[[], None]) -> None:
    """Acts before or after the call of that number of a function, `module:name` or `module:Class.name`."""
    module, _, path = function.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, name)
    calls = iter(range(sys.maxsize))

    @functools.wraps(original)
    def armed(*args: Any, **kwargs: Any) -> Any:
        hit = next(calls) == number
        if hit and when == "before":
            act()
        result = original(*args, **kwargs)
        if hit and when == "after":
            act()
        return result

    setattr(owner, name, armed)
