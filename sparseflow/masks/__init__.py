"""WHAT is kept. Tensors in, masks out; knows no hardware, no model, no loop."""

from sparseflow.masks import criteria, schedules
from sparseflow.masks.allocation import Allocation, erk_densities
from sparseflow.masks.criteria import Criterion, Scores
from sparseflow.masks.floors import Floor
from sparseflow.masks.importance import Importance, rescale
from sparseflow.masks.masks import Masks, pack_bits, unpack_bits
from sparseflow.masks.patterns import NM, Block, Pattern, Unstructured
from sparseflow.masks.pieces import Piece, Pieces
from sparseflow.masks.schedules import Constant, Cubic, Schedule
from sparseflow.masks.select import prune_tensors, shuffle_masks
from sparseflow.masks.sharded import assemble, assemble_bits, prune_slices
from sparseflow.masks.slices import Slice, cut, cut_evenly
from sparseflow.masks.threshold import Group, Threshold, apply_thresholds, find_thresholds

__all__ = [
    "NM",
    "Allocation",
    "Block",
    "Constant",
    "Criterion",
    "Cubic",
    "Floor",
    "Group",
    "Importance",
    "Masks",
    "Pattern",
    "Piece",
    "Pieces",
    "Schedule",
    "Scores",
    "Slice",
    "Threshold",
    "Unstructured",
    "apply_thresholds",
    "assemble",
    "assemble_bits",
    "criteria",
    "cut",
    "cut_evenly",
    "erk_densities",
    "find_thresholds",
    "pack_bits",
    "prune_slices",
    "prune_tensors",
    "rescale",
    "schedules",
    "shuffle_masks",
    "unpack_bits",
]
