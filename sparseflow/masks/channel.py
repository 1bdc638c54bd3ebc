"""Channels: a layer's outputs, each with all that is computed from it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparseflow.masks.criteria import Scores
from sparseflow.masks.patterns import living

Feeds = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Channel:
    """Whole output channels: the row of weights that makes one goes with the columns that read it, in other layers.

    Li et al., 2017 (arXiv:1608.08710). `feeds`: of each layer whose channels may go, the layers that read them, and for
    each of their inputs, int64 (I,), the channel that it holds, -1 for none. `refused`: why those of the other layers
    stay; they have no units. The score of a channel is the mean of those of its row, so that layers of different
    fan-in compare. `sf.channels(model, sample)` makes it; `sf.shrink` then makes the smaller model.
    """

    feeds: Feeds
    refused: Mapping[str, str] = field(default_factory=dict)

    def unit_scores(self, scores: Scores, masks: Mapping[str, Tensor] | None) -> Scores:
        """Returns the mean score of each channel's row; nothing for a layer whose channels stay."""
        found = {}
        for name, tensor in scores.tensors.items():
            rows = living(tensor, scores.absolute, None if masks is None else masks[name]).flatten(1)
            found[name] = rows.mean(1) if name in self.feeds else rows.new_zeros(0)
        return Scores(found, absolute=False)

    def units(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the channels whose row still holds a kept weight."""
        return {
            name: mask.flatten(1).any(1) if name in self.feeds else mask.new_zeros(0) for name, mask in masks.items()
        }

    def allowed(self, scores: Scores, units: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        """Returns the units as they are."""
        return units

    def elements(self, units: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Returns the masks without the rows of pruned channels, and without the columns that read them."""
        device = next(iter(units.values())).device
        masks = {name: torch.ones(tuple(shape), dtype=torch.bool, device=device) for name, shape in shapes.items()}
        for name, kept in units.items():
            if name not in self.feeds:
                continue
            masks[name][~kept] = False
            for reader, channels in self.feeds[name].items():
                if reader in masks:
                    masks[reader][:, reads(channels.to(device), ~kept)] = False
        return masks


def reads(channels: Tensor, chosen: Tensor) -> Tensor:
    """Which inputs hold a chosen channel: bool (I,), from the channel of each input and the choice of channels."""
    return (channels >= 0) & chosen[channels.clamp_min(0)]
