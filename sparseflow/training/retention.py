"""Which of the rounds on a shelf count, and what of them stays."""

from __future__ import annotations

import re

from sparseflow.files.shelf import Shelf


def name_of(index: int, kind: str = "round") -> str:
    """The directory of a round, or of a control of it, that is done."""
    return f"{kind}-{index:02d}"


def training_of(index: int, kind: str = "round") -> str:
    """The folder of its checkpoints, while it is trained."""
    return f"{name_of(index, kind)}.training"


def weights_of(index: int) -> str:
    """The directory of a round's weights, which the next pruning reads."""
    return f"{name_of(index)}.weights"


def plan_of(index: int) -> str:
    """The directory of a round's plan."""
    return f"plan-{index:02d}"


def count_rounds(shelf: Shelf, first: int = 0) -> int:
    """The number behind the last round that is done and can be gone on from; 0 where none is. Reads and checks them.

    Rounds are numbered from `first` on. The newest one does not count where it is damaged, if the one before has its
    weights. `ValueError` where an older one is damaged or missing, or those weights are.
    """
    if shelf.ranks.first(lambda: any(shelf.folder.glob("round-*.json"))):
        raise ValueError(f"{shelf.folder} was written by an earlier sparseflow; begin this search in another folder")
    rounds = [int(found[1]) for name in shelf.names() if (found := re.fullmatch(r"round-(\d+)", name))]
    if not rounds:
        return 0
    newest = max(rounds)
    damaged = [index for index in range(first, newest) if shelf.valid(name_of(index)) is None]
    # Looked at even where it is not needed: a copy that went bad should not wait for the day that it is.
    before = newest == first or shelf.valid(weights_of(newest - 1)) is not None
    if not damaged and shelf.valid(name_of(newest)) and shelf.valid(weights_of(newest)):
        return newest + 1
    if not damaged and before:
        return newest if newest > first else 0
    lost = name_of(damaged[0]) if damaged else weights_of(newest - 1)
    raise ValueError(
        f"{shelf.folder / lost} is missing or damaged, and the rounds after it rest on it: restore it from a copy, or "
        f"remove {shelf.folder} to begin this search anew"
    )


def clear_done(shelf: Shelf, finished: int) -> None:
    """Removes the checkpoints of what is done, and the weights of all rounds but the newest two.

    A process may have died before it could: so this is done again at the next start.
    """
    names = shelf.names()
    for name in names:
        if not name.endswith(".training"):
            continue
        done = name.removesuffix(".training")
        # A round that is done but no longer counts is being trained again.
        counts = done in map(name_of, range(finished)) or not done.startswith("round-")
        if counts and done in names and shelf.valid(done):
            shelf.remove(name)
    for older in map(weights_of, range(finished - 2)):
        if older in names:
            shelf.remove(older)
