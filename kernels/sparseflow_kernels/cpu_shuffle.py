"""Vectors interleaved, taken apart and summed across, by shuffles that every vector unit has."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from sparseflow_kernels.cpu_ir import Code


def interleave(code: Code, vectors: Sequence[ir.Value]) -> list[ir.Value]:
    """n vectors, n a power of two → their lanes in turn: of each the first, then of each the second, and so on.

    Of `lanes` vectors that is the transpose: lane j of vector i becomes lane i of vector j.
    """
    mixed, half = list(vectors), len(vectors) // 2
    for _ in range(len(mixed).bit_length() - 1):
        mixed = [part for i in range(half) for part in _zip(code, mixed[i], mixed[i + half])]
    return mixed


def separate(code: Code, vectors: Sequence[ir.Value]) -> list[ir.Value]:
    """The inverse of `interleave`."""
    mixed, half, lanes = list(vectors), len(vectors) // 2, code.lanes
    for _ in range(len(mixed).bit_length() - 1):
        pairs = [(mixed[2 * i], mixed[2 * i + 1]) for i in range(half)]
        mixed = [code.shuffle(a, b, range(odd, 2 * lanes, 2)) for odd in (0, 1) for a, b in pairs]
    return mixed


def sums(code: Code, vectors: Sequence[ir.Value]) -> ir.Value:
    """`lanes` vectors in, one out: its lane i is the sum over all lanes of vector i."""
    left = list(vectors)
    while len(left) > 1:
        half = len(left) // 2
        left = [code.add(*_zip(code, left[i], left[i + half])) for i in range(half)]
    return left[0]


def _zip(code: Code, a: ir.Value, b: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The lanes of a and b in turn: the lower halves, then the upper ones."""
    lanes = code.lanes
    places = [lane // 2 + lanes * (lane % 2) for lane in range(2 * lanes)]
    return code.shuffle(a, b, places[:lanes]), code.shuffle(a, b, places[lanes:])
