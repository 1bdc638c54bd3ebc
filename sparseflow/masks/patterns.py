"""Patterns: which weights are pruned together. A pattern is one frozen dataclass.

Matrices are (out, in), kernels (out, in, height, width). O outputs, I inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from sparseflow.masks.criteria import Scores


class Pattern(Protocol):
    """Groups weights into units that are kept or pruned as one, and says which units may stay beside each other.

    Thresholds, allocations and floors count units. A unit belongs to one parameter, by whose name it is found, and may
    take weights of others with it. The unit tensors may have any shape; a parameter without units gets an empty one.
    """

    def unit_scores(self, scores: Scores, masks: Mapping[str, Tensor] | None) -> Scores:
        """Returns one score a unit from one a weight. Weights that `masks` prunes must not add to a score."""
        ...

    def units(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the units, bool, that still hold a kept weight."""
        ...

    def allowed(self, scores: Scores, units: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        """Returns those of the `units` (None: all) that may stay, by their scores; None where all may."""
        ...

    def elements(self, units: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Returns the masks of parameters of `shapes` that keep the weights of the kept units."""
        ...


@dataclass(frozen=True)
class Unstructured:
    """Every weight for itself."""

    def unit_scores(self, scores: Scores, masks: Mapping[str, Tensor] | None) -> Scores:
        """Returns the scores as they are."""
        return scores

    def units(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the masks as they are."""
        return dict(masks)

    def allowed(self, scores: Scores, units: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        """Returns the units as they are."""
        return units

    def elements(self, units: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Returns the choice as it is."""
        return dict(units)


UNSTRUCTURED = Unstructured()


@dataclass(frozen=True)
class NM(Unstructured):
    """At most `n` of `m` consecutive inputs of each output, those of the highest scores; 2:4 is `NM(2, 4)`.

    Mishra et al., 2021 (arXiv:2104.08378), where it is exactly n: so it is here at density n/m. Below it, the weights
    to prune further are chosen as if there were no pattern. Of a kernel, the inputs are its input channels, for each
    place by itself. A density above n/m, and a number of inputs that is no multiple of m, are ValueErrors.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise ValueError(f"pattern nm: expected 1 <= n <= m, got n={self.n}, m={self.m}")

    def allowed(self, scores: Scores, units: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        """Returns the units that are among the n best of their m; of equal ones, those behind."""
        return {
            name: self._best(name, tensor.abs() if scores.absolute else tensor, None if units is None else units[name])
            for name, tensor in scores.tensors.items()
        }

    def _best(self, name: str, scores: Tensor, alive: Tensor | None) -> Tensor:
        inputs = scores.shape[1] if scores.dim() > 1 else 0
        if not inputs or inputs % self.m:
            raise ValueError(
                f"pattern nm: {self.n}:{self.m} needs inputs in multiples of {self.m}, but {name!r} of shape "
                f"{tuple(scores.shape)} has {inputs}; leave it out with param_filter, or choose another m"
            )
        scored = scores if alive is None else scores.masked_fill(~alive, -torch.inf)
        inward = scored.movedim(1, -1)
        groups = inward.reshape(*inward.shape[:-1], -1, self.m)
        # Stable, so that of equal scores the first is the lowest, as everywhere.
        ranks = groups.argsort(dim=-1, stable=True).argsort(-1)
        best = (ranks >= self.m - self.n).flatten(-2).movedim(-1, 1).contiguous()
        return best if alive is None else best & alive


@dataclass(frozen=True)
class Block:
    """Blocks of `h` outputs by `w` inputs, as Gray et al., 2017 (GPU Kernels for Block-Sparse Weights) cut matrices.

    Of a kernel, a row is all weights of an output: input channels times places. The score of a block is the mean of
    the scores in it, pruned ones counting as 0. A layer whose sides are no multiples of h and w is a ValueError.
    """

    h: int
    w: int

    def __post_init__(self) -> None:
        if self.h < 1 or self.w < 1:
            raise ValueError(f"pattern block: expected h and w of at least 1, got h={self.h}, w={self.w}")

    def unit_scores(self, scores: Scores, masks: Mapping[str, Tensor] | None) -> Scores:
        """Returns the mean score of each block, (O/h, I/w)."""
        return Scores(
            {
                name: self._cut(name, living(tensor, scores.absolute, None if masks is None else masks[name])).mean(
                    (1, 3)
                )
                for name, tensor in scores.tensors.items()
            },
            absolute=False,
        )

    def units(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the blocks that still hold a kept weight."""
        return {name: self._cut(name, mask).any(3).any(1) for name, mask in masks.items()}

    def allowed(self, scores: Scores, units: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        """Returns the units as they are."""
        return units

    def elements(self, units: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Returns the masks that keep whole blocks."""
        return {
            name: kept.repeat_interleave(self.h, 0).repeat_interleave(self.w, 1).reshape(tuple(shapes[name]))
            for name, kept in units.items()
        }

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        """A view (O/h, h, I/w, w)."""
        shape = tuple(tensor.shape)
        rows, columns = shape[0], prod(shape[1:])
        if tensor.dim() < 2 or rows % self.h or columns % self.w:
            raise ValueError(
                f"pattern block: blocks of {self.h}×{self.w} do not divide {name!r} of shape {shape}, which is "
                f"{rows}×{columns}; leave it out with param_filter, or choose other sides"
            )
        return tensor.reshape(rows // self.h, self.h, columns // self.w, self.w)


def living(scores: Tensor, absolute: bool, mask: Tensor | None) -> Tensor:
    """Returns the scores as they count, |score| or score, and 0 where `mask` prunes."""
    counted = scores.abs() if absolute else scores
    return counted if mask is None else torch.where(mask, counted, 0.0)
