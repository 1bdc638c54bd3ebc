"""Ways in which ranks hold a model: what each of them holds of every parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise

from torch import Tensor

from sparseflow.masks import Slice, cut_evenly
from sparseflow.ranks import Ranks

Slicing = Callable[[Mapping[str, Tensor], Ranks], list[Slice]]


def at(bounds: list[int], owner: Callable[[int], int]) -> Slicing:
    """Cuts the concatenation of all parameters at `bounds`; part i is the rank's where `owner(i)` is."""

    def slicing(tensors: Mapping[str, Tensor], ranks: Ranks) -> list[Slice]:
        offsets = dict(zip(tensors, accumulate((t.numel() for t in tensors.values()), initial=0)))
        end = sum(tensor.numel() for tensor in tensors.values())
        edges = [0, *bounds, end]
        slices = []
        for part, (low, high) in enumerate(pairwise(edges)):
            if owner(part) != ranks.rank:
                continue
            for name, tensor in tensors.items():
                start, stop = (min(max(edge - offsets[name], 0), tensor.numel()) for edge in (low, high))
                if stop > start:
                    slices.append(Slice(name, start, tensor.detach().reshape(-1)[start:stop]))
        return slices

    return slicing


def blocks(tensors: Mapping[str, Tensor], ranks: Ranks) -> list[Slice]:
    """Equal blocks of the concatenation, the last one shorter: ZeRO."""
    end = sum(tensor.numel() for tensor in tensors.values())
    size = -(-end // ranks.world)
    return at([min(size * rank, end) for rank in range(1, ranks.world)], lambda part: part)(tensors, ranks)


def dealt(tensors: Mapping[str, Tensor], ranks: Ranks) -> list[Slice]:
    """Blocks of 37 in turn, given in no order: several slices of a parameter on each rank."""
    end = sum(tensor.numel() for tensor in tensors.values())
    return at(list(range(37, end, 37)), lambda part: part % ranks.world)(tensors, ranks)[::-1]


def last_only(tensors: Mapping[str, Tensor], ranks: Ranks) -> list[Slice]:
    """All on the last rank, nothing on the others."""
    return at([], lambda part: ranks.world - 1)(tensors, ranks)


SLICINGS: dict[str, Slicing] = {"even": cut_evenly, "blocks": blocks, "dealt": dealt, "last only": last_only}
