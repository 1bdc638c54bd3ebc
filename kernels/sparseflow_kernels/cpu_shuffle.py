"""Transposes and sums across vectors, by shuffles that every vector unit has.

Two vectors are interleaved ("zipped") lane by lane; doing that log2(lanes) times turns rows into columns.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from sparseflow_kernels.cpu_ir import Code


def transpose(code: Code, rows: Sequence[ir.Value]) -> list[ir.Value]:
    """`lanes` vectors in, `lanes` vectors out: lane j of vector i becomes lane i of vector j."""
    vectors, half = list(rows), code.lanes // 2
    for _ in range(code.lanes.bit_length() - 1):
        pairs = [_zip(code, vectors[i], vectors[i + half]) for i in range(half)]
        vectors = [vector for pair in pairs for vector in pair]
    return vectors


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
    return code.shuffle(a, b, places[:lanes]), code.shuffle(a, b, [place + lanes // 2 for place in places[:lanes]])
