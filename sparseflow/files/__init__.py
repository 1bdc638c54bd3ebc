"""WHAT STAYS: tickets and weights in sparse safetensors files."""

from sparseflow.files.sparse_safetensors import DEFAULT_MAX_DENSE_BYTES, FileMissingError, load, save
from sparseflow.files.ticket import Ticket, Weights
from sparseflow.files.validate import Rule, SparseFormatError

__all__ = [
    "DEFAULT_MAX_DENSE_BYTES",
    "FileMissingError",
    "Rule",
    "SparseFormatError",
    "Ticket",
    "Weights",
    "load",
    "save",
]
