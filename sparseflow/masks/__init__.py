"""WHAT is kept. Tensors in, masks out; knows no hardware, no model, no loop."""

from sparseflow.masks import criteria, schedules
from sparseflow.masks.allocation import Allocation, erk_densities
from sparseflow.masks.criteria import Criterion, Scores
from sparseflow.masks.floors import Floor
from sparseflow.masks.masks import Masks, pack_bits, unpack_bits
from sparseflow.masks.patterns import Pattern, Unstructured
from sparseflow.masks.pieces import Piece, Pieces
from sparseflow.masks.schedules import Constant, Cubic, Schedule
from sparseflow.masks.select import prune_tensors, shuffle_masks
from sparseflow.masks.threshold import Group, Threshold, apply_thresholds, find_thresholds

__all__ = [
    "Allocation",
    "Constant",
    "Criterion",
    "Cubic",
    "Floor",
    "Group",
    "Masks",
    "Pattern",
    "Piece",
    "Pieces",
    "Schedule",
    "Scores",
    "Threshold",
    "Unstructured",
    "apply_thresholds",
    "criteria",
    "erk_densities",
    "find_thresholds",
    "pack_bits",
    "prune_tensors",
    "schedules",
    "shuffle_masks",
    "unpack_bits",
]
