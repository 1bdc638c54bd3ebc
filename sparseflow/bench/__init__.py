"""The promises about speed and memory, measured on this machine: `sparseflow bench`.

Everything is compared within one process run: the sides of a ratio take turns, the median of at least seven repeats
is shown with its quartiles, and a promise counts as missed where even the better quartile misses it. Before
anything is timed its result is checked; a path whose check fails shows no figure.
"""

from sparseflow.bench.figure import Figure
from sparseflow.bench.run import GROUPS, run_bench

__all__ = ["GROUPS", "Figure", "run_bench"]
