"""Groups of columns and values, read as words of 64 bits: a quarter, or half, of the loads."""

import triton.language as tl

from sparseflow_kernels.triton_jit import jit


@jit
def load_words(pointer, group):
    """The words of the groups (lanes,) behind a pointer to numbers of 16 or 32 bits: (first, last), maybe the same."""
    words = pointer.to(tl.pointer_type(tl.int64), bitcast=True)
    if pointer.dtype.element_ty.primitive_bitwidth == 16:
        first = tl.load(words + group)
        return first, first
    else:
        return tl.load(words + 2 * group), tl.load(words + 2 * group + 1)


@jit
def number_of_step(words, pointer, STEP: tl.constexpr):
    """(lanes,): number STEP of each group, of the type that the pointer points to."""
    if pointer.dtype.element_ty.primitive_bitwidth == 16:
        return (words[0] >> (16 * STEP)).to(tl.int16).to(pointer.dtype.element_ty, bitcast=True)
    else:
        return (words[STEP // 2] >> (32 * (STEP % 2))).to(tl.int32).to(pointer.dtype.element_ty, bitcast=True)


@jit
def multiple(places, UNIT: tl.constexpr):
    """The same numbers, which are multiples of UNIT, so computed that every compiler sees it.

    The one for AMD loses the hint of `tl.multiple_of` on the way, and then reads rows number by number.
    """
    return places // UNIT * UNIT
