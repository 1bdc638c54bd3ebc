"""Kolmogorov-Arnold networks (Liu et al., 2024, arXiv:2404.19756) whose edges are blocks of a weight matrix.

Shape suffixes: B examples, I inputs, O outputs, F features of an input.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import sqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def kan(widths: Sequence[int], grid: int = 5, degree: int = 3, reach: float = 1.0) -> nn.Module:
    """A network of `KANLinear` layers, one from each width to the next. Flattens its input."""
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"kan: expected two widths or more, all at least 1, got {list(widths)}")
    layers = [KANLinear(i, o, grid, degree, reach) for i, o in itertools.pairwise(widths)]
    return nn.Sequential(nn.Flatten(), *layers)


def features_of_an_edge(grid: int, degree: int) -> int:
    """How many weights an edge has, side by side in its row: the w of the pattern `Block(1, w)` that prunes edges."""
    return grid + degree + 2


class KANLinear(nn.Module):
    """y_o = Σ_i φ_oi(x_i), where an edge is φ(x) = bias + base · SiLU(x) + Σ_j coefficient_j · B_j(x) (eq. 2.10).

    B_j are the grid + degree B-splines of that degree on `grid` equal intervals over [−reach, reach]. They are features
    of the inputs, and all of an edge's numbers lie side by side in one row of the weight of `edges`, a Linear: so edges
    are pruned whole by the pattern `Block(1, features_of_an_edge(grid, degree))`, on every backend. Departures: the
    grid is never moved, so that beyond it an edge is SiLU and bias alone; edges have a bias, splines no scale.
    """

    def __init__(self, inputs: int, outputs: int, grid: int = 5, degree: int = 3, reach: float = 1.0) -> None:
        super().__init__()
        if inputs < 1 or outputs < 1 or grid < 1 or degree < 0 or not reach > 0:
            raise ValueError(
                "KANLinear: expected inputs, outputs and grid ≥ 1, degree ≥ 0 and reach above 0, got "
                f"inputs={inputs}, outputs={outputs}, grid={grid}, degree={degree}, reach={reach}"
            )
        self.inputs, self.degree = inputs, degree
        self.features = features_of_an_edge(grid, degree)
        step = 2 * reach / grid
        knots = -reach + step * torch.arange(-degree, grid + degree + 1, dtype=torch.float64)
        self.register_buffer("knots", knots.to(torch.get_default_dtype()))
        self.edges = nn.Linear(inputs * self.features, outputs, bias=False)
        with torch.no_grad():
            weight_OIF = self.edges.weight.view(outputs, inputs, self.features)
            weight_OIF[..., 0].zero_()
            weight_OIF[..., 1].normal_(std=1 / sqrt(inputs))
            weight_OIF[..., 2:].normal_(std=0.1 / sqrt(inputs))

    def forward(self, x_BI: Tensor) -> Tensor:
        if x_BI.shape[-1] != self.inputs:
            raise ValueError(f"KANLinear: expected {self.inputs} inputs, got {tuple(x_BI.shape)}")
        knots = self.get_buffer("knots").to(x_BI.dtype)
        x_BIF = x_BI.unsqueeze(-1)
        all_BIF = torch.cat([torch.ones_like(x_BIF), F.silu(x_BIF), b_splines(x_BIF, knots, self.degree)], -1)
        y_BO: Tensor = self.edges(rearrange(all_BIF, "... i f -> ... (i f)"))
        return y_BO


def b_splines(x: Tensor, knots: Tensor, degree: int) -> Tensor:
    """The B-splines on these knots at x (..., 1), by the recursion of Cox and de Boor; (..., knots − degree − 1)."""
    found = ((x >= knots[:-1]) & (x < knots[1:])).to(x.dtype)
    for order in range(1, degree + 1):
        rising = (x - knots[: -order - 1]) / (knots[order:-1] - knots[: -order - 1])
        falling = (knots[order + 1 :] - x) / (knots[order + 1 :] - knots[1:-order])
        found = rising * found[..., :-1] + falling * found[..., 1:]
    return found


def kept_edges(mask: Tensor, features: int) -> Tensor:
    """Which edges a mask of the weight of `edges` keeps, bool (O, I). ValueError where it cuts through one."""
    mask_OIF = rearrange(mask, "o (i f) -> o i f", f=features)
    if not torch.equal(mask_OIF.any(-1), mask_OIF.all(-1)):
        raise ValueError(f"kept_edges: the mask keeps parts of edges; prune with the pattern Block(1, {features})")
    return mask_OIF.all(-1)
