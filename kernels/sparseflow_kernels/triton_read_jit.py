"""The kernel of `triton_read`."""

import triton.language as tl

from sparseflow_kernels.triton_jit import jit


@jit
def read_kernel(x, out, blocks, rounds, BLOCK: tl.constexpr):
    """One program: every so many blocks of x, added up, in each round."""
    program = tl.program_id(0)
    place = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for number in range(rounds):
        for block in range(program, blocks, tl.num_programs(0)):
            # Another block than in the last round, so that the multiprocessor's own cache does not answer.
            total += tl.load(x + ((block + number * 7) % blocks) * BLOCK + place)
    tl.store(out + program * BLOCK + place, total)
