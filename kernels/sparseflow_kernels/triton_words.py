"""Groups of columns and values, read as words of 64 bits: a quarter, or half, of the loads."""

import triton
import triton.language as tl


@triton.jit
def load_words(pointer, group):
    """The words of the groups (lanes,) behind a pointer to numbers of 16 or 32 bits: (first, last), maybe the same."""
    words = pointer.to(tl.pointer_type(tl.int64), bitcast=True)
    if pointer.dtype.element_ty.primitive_bitwidth == 16:
        first = tl.load(words + group)
        return first, first
    else:
        return tl.load(words + 2 * group), tl.load(words + 2 * group + 1)


@triton.jit
def bits_of_step(words, STEP: tl.constexpr, TYPE: tl.constexpr):
    """(lanes,): number STEP of each group."""
    if TYPE.primitive_bitwidth == 16:
        return (words[0] >> (16 * STEP)).to(tl.int16).to(TYPE, bitcast=True)
    else:
        return (words[STEP // 2] >> (32 * (STEP % 2))).to(tl.int32).to(TYPE, bitcast=True)
