"""Checks of names and numbers that a user passed; each error says what was expected and what was got."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

T = TypeVar("T")


def choose(kind: str, name: str, available: Mapping[str, T]) -> T:
    """Returns `available[name]`; a ValueError for an unknown name lists the choices."""
    if name not in available:
        raise ValueError(unknown(kind, name, available))
    return available[name]


def unknown(kind: str, name: str, available: Iterable[str]) -> str:
    """Returns the message `no {kind} 'x'; available: a, b; did you mean 'y'?`."""
    names = list(available)
    message = f"no {kind} {name!r}; available: {', '.join(names) or 'none'}"
    nearest = get_close_matches(name, names, n=1)
    return f"{message}; did you mean {nearest[0]!r}?" if nearest else message


def check_density(density: float) -> None:
    """Raises ValueError unless `density` is in (0, 1]."""
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density: expected the fraction to keep, in (0, 1], got {density}")


def check_rate(rate: float, argument: str = "rate") -> None:
    """Raises ValueError unless `rate` is in [0, 1)."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{argument}: expected the fraction of the survivors to prune, in [0, 1), got {rate}")


def match_globs(argument: str, names: Iterable[str], globs: Mapping[str, T]) -> dict[str, T | None]:
    """Returns for each name the value of the first glob that matches it, or None.

    Raises ValueError for a glob that matches no name; `argument` names the argument in the message.
    """
    names = list(names)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ValueError(f"{argument}: {unknown('parameter matching', glob, names)}")
    return {name: next((value for glob, value in globs.items() if fnmatchcase(name, glob)), None) for name in names}
