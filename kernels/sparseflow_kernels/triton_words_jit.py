"""How kernels read: groups of columns and values as words of 64 bits, and places that are multiples of something."""

import triton.language as tl

from sparseflow_kernels.triton_jit import jit


@jit
def load_groups(pointer, group):
    """The four steps of each group (lanes,), four tensors (lanes,), behind a pointer to numbers of 16 or 32 bits."""
    number = pointer.dtype.element_ty
    words = pointer.to(tl.pointer_type(tl.int64), bitcast=True)
    if number.primitive_bitwidth == 16:
        word = tl.load(words + group)
        return (
            word.to(tl.int16).to(number, bitcast=True),
            (word >> 16).to(tl.int16).to(number, bitcast=True),
            (word >> 32).to(tl.int16).to(number, bitcast=True),
            (word >> 48).to(tl.int16).to(number, bitcast=True),
        )
    else:
        first = tl.load(words + 2 * group)
        second = tl.load(words + 2 * group + 1)
        return (
            first.to(tl.int32).to(number, bitcast=True),
            (first >> 32).to(tl.int32).to(number, bitcast=True),
            second.to(tl.int32).to(number, bitcast=True),
            (second >> 32).to(tl.int32).to(number, bitcast=True),
        )


@jit
def multiple(places, UNIT: tl.constexpr):
    """The same numbers, int64 multiples of UNIT and not negative, so computed that every compiler sees what they are.

    The one for AMD loses the hint of `tl.multiple_of` on the way, and then reads rows number by number.
    """
    # Unsigned, a power of two costs a single operation.
    return (places.to(tl.uint64) // UNIT * UNIT).to(tl.int64)
