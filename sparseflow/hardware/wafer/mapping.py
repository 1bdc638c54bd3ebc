"""Which grid of cores a model runs on, and from how many tokens on it no longer waits for the wafer's ports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sparseflow.hardware.wafer.layer import PASSES, Grid, Layer, Pass, Wafer, run_pass

CountedPasses = tuple[tuple[int, Pass], ...]


def grids(layers: Iterable[Layer], wafer: Wafer) -> list[Grid]:
    """The mappings to choose from. A line crosses the wafer, so there are at most as many as a square of cores has."""
    most = min(int(wafer.system.cores**0.5), *(min(one.inputs, one.outputs) for one in layers))
    sizes = {1} | {base << power for base in (2, 3) for power in range(10)}
    return [wafer.grid(lines) for lines in sorted(sizes) if lines <= most]


def fastest(
    layers: Sequence[Layer], samples: int, choices: Iterable[Grid], wafer: Wafer, dense_gradient: bool = False
) -> tuple[Grid, CountedPasses]:
    """The grid with the least seconds, and all passes on it with how often each occurs.

    One mapping serves all layers, since a layer's outputs lie as the next one's inputs.
    """
    found = [(grid, _passes(layers, samples, grid, wafer, dense_gradient)) for grid in choices]
    return min(found, key=lambda one: sum(count * each.seconds for count, each in one[1]))


def saturation_tokens(layer: Layer, wafer: Wafer, choices: Sequence[Grid] | None = None) -> int:
    """The tokens of a micro-batch from which on wafer I/O takes less than any pass of the layer in any mapping; on one
    grid, if that is given, from which on no pass waits for I/O.
    """
    choices = choices or grids([layer], wafer)

    def waits(tokens: int) -> bool:
        passes = [[run_pass(layer, name, tokens, grid, wafer) for grid in choices] for name in PASSES]
        return any(min(one.on_wafer for one in each) < each[0].io for each in passes)

    high = 1
    while waits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if waits(middle) else (low, middle)
    return high


def _passes(layers: Iterable[Layer], samples: int, grid: Grid, wafer: Wafer, dense_gradient: bool) -> CountedPasses:
    return tuple(
        (layer.count, run_pass(layer, name, samples * layer.tokens, grid, wafer, dense_gradient))
        for layer in layers
        for name in PASSES
    )
