"""Where the rows of x begin that the slots of a panel name."""

from __future__ import annotations

import triton
import triton.language as tl

from sparseflow_kernels.triton_lines import Lines


@triton.jit
def panel_addresses(index, slots, width, table, pitch, WIDE: tl.constexpr):
    """Elements from the start of x, int64, for these slots of a panel with `width` columns."""
    column = tl.load(index + slots, mask=slots < width, other=0).to(tl.int32)
    if index.dtype.element_ty == tl.int16:
        # The bits of a uint16.
        column = column & 0xFFFF
    if table is None:
        at = column.to(tl.int64) * pitch
    else:
        at = tl.load(table + column)
        if WIDE:
            at = tl.multiple_of(at, 8)
    return at


def is_wide(lines: Lines) -> bool:
    """Whether tables and offsets lead to whole vectors of 16 bytes, of numbers of 2."""
    return lines.unit % 8 == 0
