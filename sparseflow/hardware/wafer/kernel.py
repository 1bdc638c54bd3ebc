"""What the model supposes about the sparse kernel. No published figure settles these numbers; each says so."""

from __future__ import annotations

from dataclasses import dataclass

from sparseflow.hardware.wafer.systems import Sourced


@dataclass(frozen=True)
class Kernel:
    """Cycles and bits of the AXPY kernel. `rows` are the weight rows whose partial sums a core holds at once.

    `overlap` is the share of the partial-sum reduction hidden under the AXPYs of the next row: 0 none, 1 all.
    """

    task_cycles: Sourced = Sourced(2, "assumed: cycles to start the AXPY of a weight that has arrived")
    reduce_cycles: Sourced = Sourced(2, "assumed: cycles to start adding partial sums, as for an AXPY")
    adds: Sourced = Sourced(1, "derived: one 32-bit partial sum a cycle, the rate of a link")
    overlap: Sourced = Sourced(0, "assumed: Hot Chips 34 says that overlap exists, and nothing read says how much")
    rows: Sourced = Sourced(8, "assumed: with fewer, the simulation finds lines waiting for each other's partial sums")
    queue: Sourced = Sourced(64, "assumed: weights that wait at a core; 256 bytes of its memory")
    value_bits: Sourced = Sourced(16, "csl-examples topic-04: a wavelet is a 16-bit value")
    index_bits: Sourced = Sourced(16, "csl-examples topic-04: and a 16-bit index")
    pointer_bits: Sourced = Sourced(32, "derived: one control wavelet ends a row")
    gradient_bits: Sourced = Sourced(32, "assumed: gradients leave in 32 bits, their places being known")
