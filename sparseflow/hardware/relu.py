"""ReLU modules that need not compute, because the sparse layer before them has already."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sparseflow.hardware.names import unwrapped

_MARK = "_sparseflow_rectified"


class PassedReLU(nn.ReLU):
    """nn.ReLU that returns its input itself where a sparse layer marked it as rectified, and computes elsewhere.

    Only the mark on the tensor counts, so that one module may stand behind several layers. Where the mark is lost on
    the way, as through dropout, it computes: a ReLU twice is a ReLU. A torch.utils.checkpoint (use_reentrant=False)
    that begins between a layer and its ReLU meets the mark in its first pass alone, and raises CheckpointError when it
    computes again: begin it before the layer, or behind the ReLU.
    """

    def forward(self, input: Tensor) -> Tensor:
        # Taken off, because whatever is written into the tensor later may be negative.
        if vars(input).pop(_MARK, False):
            return input
        return F.relu(input, inplace=self.inplace)


def mark_rectified(y: Tensor) -> None:
    """Notes on this very tensor object that it is already max(0, y)."""
    vars(y)[_MARK] = True


def relus_of(model: nn.Module) -> dict[str, nn.ReLU]:
    """Every module of the class nn.ReLU exactly, or made a PassedReLU before, under each name it has."""
    return {
        unwrapped(path): module
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.ReLU) and type(module) in (nn.ReLU, PassedReLU)
    }


def pass_rectified(module: nn.ReLU) -> None:
    """Makes an nn.ReLU return what is already rectified, in place."""
    module.__class__ = PassedReLU


def restore_relus(model: nn.Module) -> None:
    """Makes every PassedReLU of a model an nn.ReLU again."""
    passed: list[nn.Module] = [module for module in model.modules() if type(module) is PassedReLU]
    for module in passed:
        module.__class__ = nn.ReLU
