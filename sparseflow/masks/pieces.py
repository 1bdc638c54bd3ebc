"""Pieces: what one process holds of the scores of all layers, which may lie on many."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from sparseflow.masks.criteria import Scores
from sparseflow.masks.keys import check_dtype
from sparseflow.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Piece:
    """Consecutive scores of one layer, all of them or some; `survivors`: True for those that take part, None: all.

    place: its index in `Pieces.order`.
    """

    layer: str
    place: int
    scores: Tensor
    survivors: Tensor | None


@dataclass(frozen=True)
class Pieces:
    """The scores of all layers: the pieces `here`, and who else holds some.

    order: the layer of every piece of every process; equal scores are pruned in this order, and within a piece
    lowest index first. absolute: a score counts as |score|. dtype: what all scores are promoted to, on every process.
    """

    here: Sequence[Piece]
    order: Sequence[str]
    absolute: bool
    dtype: torch.dtype
    ranks: Ranks = ALONE
    # Who gave the scores, for messages.
    origin: str = ""

    @classmethod
    def whole(cls, scores: Scores, survivors: Mapping[str, Tensor] | None, origin: str = "") -> "Pieces":
        """One piece a layer, all here. Raises TypeError for scores that are no floats."""
        tensors = scores.tensors
        for name, tensor in tensors.items():
            check_dtype(name, tensor.dtype)
        here = [
            Piece(name, place, tensor, None if survivors is None else survivors[name])
            for place, (name, tensor) in enumerate(tensors.items())
        ]
        dtype = promote(tensor.dtype for tensor in tensors.values())
        return cls(here, list(tensors), scores.absolute, dtype, origin=origin)

    def of(self, layers: Sequence[str]) -> list[Piece]:
        """The pieces here of some layers."""
        return [piece for layer in layers for piece in self._held.get(layer, ())]

    def kept(self, layers: Sequence[str], masks: Mapping[int, Tensor]) -> dict[str, int]:
        """How many units the masks, by place, keep of each of these layers, over all processes."""
        rows = {name: row for row, name in enumerate(layers)}
        counts = torch.zeros(len(rows), dtype=torch.int64)
        for piece in self.of(layers):
            counts[rows[piece.layer]] += int(masks[piece.place].count_nonzero())
        return dict(zip(rows, self.ranks.sum(counts).tolist(), strict=True))

    @cached_property
    def _held(self) -> dict[str, list[Piece]]:
        held: dict[str, list[Piece]] = {}
        for piece in self.here:
            held.setdefault(piece.layer, []).append(piece)
        return held


def promote(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The narrowest dtype that holds all scores exactly; bfloat16 where there are none."""
    found = list(dtypes)
    return reduce(torch.promote_types, found) if found else torch.bfloat16
