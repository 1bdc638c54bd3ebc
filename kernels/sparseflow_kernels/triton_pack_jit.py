"""The kernel that fills packed copies of the values. Its launcher is in `triton_pack`."""

import triton.language as tl

from sparseflow_kernels.triton_jit import jit


@jit
def refresh_kernel(values, source, packed, other_source, other_packed, slots, other_slots, BLOCK: tl.constexpr):
    """One program: BLOCK slots of the first copy or, behind its last, of the other."""
    number = tl.program_id(0)
    blocks = tl.cdiv(slots, BLOCK)
    if number < blocks:
        _fill(values, source, packed, number, slots, BLOCK)
    else:
        _fill(values, other_source, other_packed, number - blocks, other_slots, BLOCK)


@jit
def _fill(values, source, packed, number, slots, BLOCK: tl.constexpr):
    slot = number.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = slot < slots
    place = tl.load(source + slot, mask=inside, other=-1)
    value = tl.load(values + place, mask=place >= 0, other=0.0)
    tl.store(packed + slot, value.to(tl.float32).to(packed.dtype.element_ty), mask=inside)
