"""What theory says about strong tickets: how wide a random network must be to hold a sparse one that is good."""

from sparseflow.theory.bounds import (
    SampleAtDensity,
    entropy,
    fixed_point,
    large_subset_size,
    lower_bound,
    sample_at_density,
    smallest_sample,
    subset_ratio,
    uniform_sample,
)
from sparseflow.theory.construction import Match, prune_to_match
from sparseflow.theory.network import LayerTheory, NetworkTheory, of_network, widths_of
from sparseflow.theory.subset_sum import SuccessRate, brute_force, covering_rate, meet_in_the_middle, success_rate

__all__ = [
    "LayerTheory",
    "Match",
    "NetworkTheory",
    "SampleAtDensity",
    "SuccessRate",
    "brute_force",
    "covering_rate",
    "entropy",
    "fixed_point",
    "large_subset_size",
    "lower_bound",
    "meet_in_the_middle",
    "of_network",
    "prune_to_match",
    "sample_at_density",
    "smallest_sample",
    "subset_ratio",
    "success_rate",
    "uniform_sample",
    "widths_of",
]
