"""The theorems applied to one network: how wide a random one must be so that pruning alone can find it there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from sparseflow.hardware.survey import survey
from sparseflow.theory.bounds import SampleAtDensity, fixed_point, lower_bound, sample_at_density, smallest_sample
from sparseflow.theory.subset_sum import SuccessRate, success_rate

SHAPE_ONLY = "c = {constant:g}, shape only: the theorems give no constants"


@dataclass(frozen=True)
class LayerTheory:
    """One target layer. `sample` is n* (theorem 3), `subset` k = density · n*; parameters are those of the random one.

    `least_parameters` is theorem 5's, for the largest square map within the layer; None where the error is too large
    for it.
    """

    inputs: int
    outputs: int
    sample: float
    subset: int
    hidden: int
    parameters: int
    overparameterisation: float
    least_parameters: float | None


@dataclass(frozen=True)
class NetworkTheory:
    """What the theorems say of a target network at a density and an error, and subset sums that were tried out."""

    widths: tuple[int, ...]
    density: float
    error: float
    constant: float
    layers: tuple[LayerTheory, ...]
    # For a single weight.
    sample: SampleAtDensity
    # Theorem 2 at a size that can be tried out.
    tried: tuple[SuccessRate, ...]

    @property
    def parameters(self) -> int:
        """Of the random network, all layers together."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def target_parameters(self) -> int:
        """Of the target network, without biases."""
        return sum(layer.inputs * layer.outputs for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        totals = {"parameters": self.parameters, "target_parameters": self.target_parameters}
        return {**asdict(self), **totals, "note": SHAPE_ONLY.format(constant=self.constant)}

    def __str__(self) -> str:
        head = (
            f"a random network that holds {'-'.join(map(str, self.widths))} within {self.error:g} at a density of "
            f"{self.density:g}\n{SHAPE_ONLY.format(constant=self.constant)}"
        )
        return "\n".join([head, *_sample_lines(self), "", *_layer_lines(self), "", *_tried_lines(self)]).rstrip()


def of_network(
    widths: Sequence[int], density: float, error: float = 0.01, constant: float = 1.0, trials: int = 200, seed: int = 0
) -> NetworkTheory:
    """Theorems 2, 3 and 5 and corollaries 1 and 2 of Natale et al., 2024 (arXiv:2410.14754), for a target network.

    `widths`: those of its fully connected layers, input and output included. `density`, in (0, 0.5], is that of the
    theorems' subsets; where all widths are equal it is also the network's. `trials`: for each of the subset sums that
    are tried out, 0 for none.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"theory: expected two widths or more, all at least 1, got {list(widths)}")
    depth = len(widths) - 1
    layers = [_layer(i, o, depth, density, error, constant) for i, o in pairwise(widths)]
    sample = sample_at_density(density, error, constant)
    tried = [
        success_rate(smallest_sample(k, error, ratio), k, error, trials, seed)
        for k in (2, 3)
        for ratio in (0.7, 1.0, 1.4)
        if trials
    ]
    return NetworkTheory(tuple(widths), density, error, constant, tuple(layers), sample, tuple(tried))


def widths_of(model: nn.Module) -> tuple[int, ...]:
    """The widths of a model whose linear layers come one after the other, as their sizes say, and only they.

    ValueError where the sizes do not fit each other, or a layer is a convolution.
    """
    widths: list[int] = []
    for name, site in survey(model).sites.items():
        if len(site.shape) != 2:
            raise ValueError(f"theory: the theorems are for fully connected layers, and {name!r} is a convolution")
        outputs, inputs = reversed(site.shape) if site.transposed else site.shape
        if widths and widths[-1] != inputs:
            raise ValueError(
                f"theory: expected linear layers one after the other, but {name!r} takes {inputs} inputs and the layer "
                f"before it gives {widths[-1]}; give the widths yourself"
            )
        widths = [*(widths or [inputs]), outputs]
    if not widths:
        raise ValueError("theory: expected a model with linear layers, got none")
    return tuple(widths)


def _layer(inputs: int, outputs: int, depth: int, density: float, error: float, constant: float) -> LayerTheory:
    sample = fixed_point(inputs, outputs, depth, density, error, constant)
    k, hidden = max(1, round(density * sample)), round(2 * inputs * sample)
    possible = error < 1 / 16
    return LayerTheory(
        inputs,
        outputs,
        sample,
        k,
        hidden,
        hidden * (inputs + outputs),
        2 * sample * (inputs + outputs) / outputs,
        lower_bound(min(inputs, outputs), density, error) if possible else None,
    )


def _sample_lines(found: NetworkTheory) -> list[str]:
    asked = found.sample
    last = "its k is too small" if asked.corollary_2 is None else f"n ≥ {asked.corollary_2:,.1f}"
    return [
        f"n numbers to make one weight of, k = {found.density:g} · n in each subset:",
        f"  theorem 2    n ≥ {asked.theorem_2:,.1f}: one weight, with a constant probability",
        f"  corollary 1  n ≥ {asked.corollary_1:,.1f}: every weight at once, with probability {1 - found.error:g}",
        f"  corollary 2  {last}: the same, for large k",
    ]


def _layer_lines(found: NetworkTheory) -> list[str]:
    rows = [("layer", "n*", "k", "units between", "weights", "times", "least (thm 5)")]
    for layer in found.layers:
        least = layer.least_parameters
        rows.append(
            (
                f"{layer.inputs}→{layer.outputs}",
                f"{layer.sample:,.1f}",
                f"{layer.subset:,}",
                f"{layer.hidden:,}",
                f"{layer.parameters:,}",
                f"{layer.overparameterisation:,.0f}",
                "error ≥ 1/16" if least is None else f"{least:,.0f}",
            )
        )
    total = f"in all {found.parameters:,} random weights for {found.target_parameters:,}"
    return [*_columns(rows), total]


def _tried_lines(found: NetworkTheory) -> list[str]:
    if not found.tried:
        return []
    trials = found.tried[0].trials
    rows = [("k", "n", "found a subset")]
    rows += [(str(one.k), str(one.n), f"{one.rate:.3f} ± {one.deviation:.3f}") for one in found.tried]
    return [
        f"tried out, {trials} draws each: k of n numbers that add up to one z within {found.error:g}",
        *_columns(rows),
    ]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    sizes = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(size) for cell, size in zip(row, sizes)) for row in rows]
