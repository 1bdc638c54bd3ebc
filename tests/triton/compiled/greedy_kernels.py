"""Kernels that take too much, or too little at a time."""

import triton.language as tl

from sparseflow_kernels.triton_jit import jit


@jit
def sums_kernel(x, y, pitch, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr):
    """The sum of STEPS tiles, held in registers."""
    at = tl.arange(0, ROWS)[:, None] * pitch + tl.arange(0, COLUMNS)[None, :]
    tile = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for step in range(STEPS):
        tile += tl.load(x + at + step * pitch).to(tl.float32)
    tl.store(y + at, tile)


@jit
def product_kernel(x, y, pitch, steps, SIZE: tl.constexpr):
    """A dense product; tiles of x are read by several steps ahead."""
    at = tl.arange(0, SIZE)[:, None] * pitch + tl.arange(0, SIZE)[None, :]
    acc = tl.zeros((SIZE, SIZE), dtype=tl.float32)
    for step in range(steps):
        tile = tl.load(x + at + step * SIZE)
        acc = tl.dot(tile, tl.load(y + at + step * pitch), acc)
    tl.store(y + at, acc.to(y.dtype.element_ty))
