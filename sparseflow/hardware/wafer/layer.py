"""Closed forms for one layer and pass on a wafer: cycles of AXPYs, of partial sums and of wafer I/O, and which binds.

Y = W X with W of O rows and I columns. The features of X are shared out over the grid's lines, its tokens over the
columns; a core holds I / lines features of t = ceil(tokens / columns) tokens. Each nonzero goes to all cores of the
line that holds its feature, and is one AXPY of length t there; after a row's last weight the partial sums of the lines
are chained. What a weight costs is c = max(1, task + ceil(t / fmacs)) cycles, and

    AXPYs      λ · nnz / lines · c           λ: the busiest line's weights over the mean
    reduction  O · (reduce + t / adds)       not made less by sparsity
    wafer I/O  (nnz · (value + index) + O · pointer) / rate, or dense tiles where those are smaller
    fill       lines · (reduce + 1) + columns + t / adds

    pass = max(AXPYs + (1 - overlap) · reduction, reduction, I/O) + fill

dgrad is the same with O and I exchanged; wgrad is a dot product of length t a nonzero and has no reduction by rows.
The mapping follows Hot Chips 33, slides 20 and 29 to 31, and Hot Chips 34, as transcribed; the formulas are our own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from sparseflow.hardware.wafer.imbalance import expected_imbalance
from sparseflow.hardware.wafer.kernel import Kernel
from sparseflow.hardware.wafer.systems import System

PassName = Literal["forward", "dgrad", "wgrad"]
Limit = Literal["compute", "reduction", "wafer I/O"]
PASSES: tuple[PassName, ...] = ("forward", "dgrad", "wgrad")


@dataclass(frozen=True)
class Layer:
    """One weight matrix, `count` times in the model, used at `tokens` places of each sample.

    `imbalance` is λ; None: what a random mask of this density is expected to have. A layer that is not `prunable` stays
    dense. Where not `whole_output`, the output is never on the wafer as a whole: the logits of a language model, made
    and consumed in slices.
    """

    name: str
    outputs: int
    inputs: int
    density: float = 1.0
    count: int = 1
    tokens: int = 1
    imbalance: float | None = None
    prunable: bool = True
    whole_output: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"{self.name}: expected a density in (0, 1], got {self.density}")
        if min(self.outputs, self.inputs, self.count, self.tokens) < 1:
            raise ValueError(f"{self.name}: expected sizes of 1 or more, got {self.outputs} × {self.inputs}")

    def at(self, density: float, imbalance: float | None = None) -> Layer:
        """The same layer at another density; itself where it is not pruned."""
        return replace(self, density=density, imbalance=imbalance) if self.prunable else self

    @property
    def weights(self) -> int:
        """Weights of one of them, kept or not."""
        return self.outputs * self.inputs

    @property
    def nnz(self) -> float:
        """Weights kept of one of them."""
        return self.weights * self.density


@dataclass(frozen=True)
class Grid:
    """How the cores share a layer: features over `lines`, tokens over `columns`."""

    lines: int
    columns: int


@dataclass(frozen=True)
class Wafer:
    """A machine with what is supposed of its kernel and what was fitted.

    `utilisation` is the share of the cycles in which the closed forms' work gets done, `fixed` seconds that every step
    takes; both come from calibration. 1 and 0 give the closed forms as they are.
    """

    system: System
    kernel: Kernel = Kernel()
    utilisation: float = 1.0
    fixed: float = 0.0

    def grid(self, lines: int) -> Grid:
        """The grid with so many lines, and as many columns as there are cores for."""
        return Grid(lines, max(1, int(self.system.cores) // lines))


@dataclass(frozen=True)
class Pass:
    """One pass of one layer, modelled. Seconds, bytes into and out of the wafer, and wavelet hops on it."""

    layer: str
    name: PassName
    compute: float
    reduction: float
    overlap: float
    io: float
    fill: float
    bytes_in: float
    bytes_out: float
    hops: float

    @property
    def on_wafer(self) -> float:
        """Seconds of AXPYs and of the reductions beside them."""
        return max(self.compute + (1 - self.overlap) * self.reduction, self.reduction)

    @property
    def seconds(self) -> float:
        """The whole pass."""
        return max(self.on_wafer, self.io) + self.fill

    @property
    def limit(self) -> Limit:
        """What binds."""
        if self.io > self.on_wafer:
            return "wafer I/O"
        return "reduction" if self.reduction > self.compute else "compute"


@dataclass(frozen=True)
class Cycles:
    """The closed forms in cycles."""

    axpys: float
    reduction: float
    fill: float


def pass_cycles(outputs: int, busiest: float, tokens: int, grid: Grid, fmacs: float, kernel: Kernel) -> Cycles:
    """Forward's cycles for `outputs` rows, the busiest line having `busiest` weights."""
    held = ceil(tokens / grid.columns)
    axpy = max(1.0, kernel.task_cycles + ceil(held / fmacs))
    add = held / kernel.adds
    fill = grid.lines * (kernel.reduce_cycles + 1) + grid.columns + add
    return Cycles(busiest * axpy, outputs * (kernel.reduce_cycles + add), fill)


def gradient_cycles(busiest: float, tokens: int, grid: Grid, fmacs: float, kernel: Kernel) -> Cycles:
    """wgrad's cycles: a dot product a weight, its sum chained along the line."""
    axpy = max(1.0, kernel.task_cycles + ceil(ceil(tokens / grid.columns) / fmacs))
    return Cycles(busiest * axpy, 0.0, grid.columns * (axpy + 1))


def stream_bytes(layer: Layer, kernel: Kernel, transposed: bool = False) -> float:
    """Bytes of one layer's weights on the wire: compressed rows, or dense where that is less."""
    rows = layer.inputs if transposed else layer.outputs
    compressed = layer.nnz * (kernel.value_bits + kernel.index_bits) + rows * kernel.pointer_bits
    return min(compressed, layer.weights * kernel.value_bits) / 8


def run_pass(layer: Layer, name: PassName, tokens: int, grid: Grid, wafer: Wafer, dense_gradient: bool = False) -> Pass:
    """One pass of a layer over `tokens` tokens. `dense_gradient`: wgrad at every place, as RigL needs to update."""
    system, kernel = wafer.system, wafer.kernel
    # A column without a token would only be in the way.
    grid = Grid(grid.lines, min(grid.columns, tokens))
    rows, features = (layer.inputs, layer.outputs) if name == "dgrad" else (layer.outputs, layer.inputs)
    nnz = layer.weights if dense_gradient and name == "wgrad" else layer.nnz
    uneven = layer.imbalance
    if uneven is None or nnz > layer.nnz:
        uneven = expected_imbalance(nnz, nnz / layer.weights, features, grid.lines)
    busiest = nnz / grid.lines * uneven
    held = ceil(tokens / grid.columns)
    if name == "wgrad":
        cycles = gradient_cycles(busiest, tokens, grid, system.fmacs, kernel)
        bytes_in, bytes_out = 0.0, nnz * kernel.gradient_bits / 8
        hops = nnz * grid.columns
    else:
        cycles = pass_cycles(rows, busiest, tokens, grid, system.fmacs, kernel)
        bytes_in, bytes_out = stream_bytes(layer, kernel, name == "dgrad"), 0.0
        hops = nnz * grid.columns + rows * held * grid.columns * grid.lines
    rate = system.clock * wafer.utilisation
    return Pass(
        layer.name,
        name,
        cycles.axpys / rate,
        cycles.reduction / rate,
        kernel.overlap,
        max(bytes_in, bytes_out) * 8 / system.io_bits,
        cycles.fill / system.clock,
        bytes_in,
        bytes_out,
        hops,
    )


def reduction_share(layer: Layer, tokens: int, grid: Grid, wafer: Wafer) -> float:
    """f: the reduction's share of a dense layer's forward pass. Sparsity alone speeds that up by less than 1 / f."""
    dense = run_pass(replace(layer, density=1.0, imbalance=None), "forward", tokens, grid, wafer)
    return 1 - dense.compute / dense.on_wafer
