"""From a convolution's mask to the lists of its kernels: which plane each kept weight reads, and at what shift.

Both directions are cut into blocks of planes, where rows are long enough for that: the part of them that a tile
gathers from then stays in the first-level cache.

    forward    blocks of phases of input channels; in each, one list for each output channel
    backward   blocks of output channels; in each, one list for each phase of the input channels

Values are kept in the backward's order, in which their gradient is written in sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow_kernels.cpu_conv_geometry import Axis, Geometry

Pair = tuple[int, int]

# Planes of a block, and the kept weights of a list that are worth one.
_BLOCK, _SHORTEST = 24, 8


@dataclass(frozen=True)
class ConvShape:
    """A convolution but for its weights and its image size."""

    outputs: int
    channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def planes(self) -> int:
        """Phases of all input channels."""
        return self.channels * self.stride[0] * self.stride[1]

    def axis(self, number: int, size: int) -> Axis:
        """Its height (0) or width (1)."""
        i = number
        return Axis(size, self.kernel[i], self.stride[i], self.padding[i], self.dilation[i])

    def split(self, number: int, tap: Tensor) -> tuple[Tensor, Tensor]:
        """Which phase, and what shift in cells, places in the kernel read along that axis."""
        place = tap * self.dilation[number] - self.padding[number]
        stride = self.stride[number]
        return place.remainder(stride), place.div(stride, rounding_mode="floor")


@dataclass(frozen=True, eq=False)
class ConvStructure:
    """The lists of one mask with Z kept weights, F blocks of the forward and B of the backward."""

    shape: ConvShape
    # Flat places in the weight, in the order of the values: int64 (Z,)
    places: Tensor
    # Where a weight of the forward's lists stands among the values: int32 (Z,)
    order: Tensor
    # Where each list begins: int32 (F * O + 1,) and (B * planes + 1,)
    row_pointers: Tensor
    column_pointers: Tensor
    forward_blocks: int
    backward_blocks: int
    # Of each kept weight in the order of the values: int64 (Z,)
    output: Tensor
    plane: Tensor
    row_shift: Tensor
    column_shift: Tensor

    @property
    def nnz(self) -> int:
        return self.places.numel()

    def forward_offsets(self, geometry: Geometry) -> Tensor:
        """Where in scratch memory each weight of the forward's lists reads x: int32 (Z,)."""
        layout = geometry.padded_x
        row = (self.row_shift - geometry.rows.low) * layout.pitch
        offsets = self.plane * layout.size + row + layout.left + self.column_shift * geometry.group
        return offsets.int()[self.order]

    def backward_offsets(self, geometry: Geometry) -> Tensor:
        """Where in scratch memory each value reads dy: int32 (Z,)."""
        layout = geometry.padded_dy
        row = (geometry.rows.high - self.row_shift) * layout.pitch
        return (self.output * layout.size + row + layout.left - self.column_shift * geometry.group).int()


def conv_structure(
    mask: Tensor,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> ConvStructure:
    """The lists of a bool (O, C / groups, height, width) mask on the CPU."""
    outputs, fan_in, height, width = mask.shape
    shape = ConvShape(outputs, fan_in * groups, (height, width), stride, padding, dilation)
    kept = mask.flatten().nonzero().flatten()
    output, channel, row, column = torch.unravel_index(kept, mask.shape)
    channel = channel + output.div(outputs // groups, rounding_mode="floor") * fan_in
    row_phase, row_shift = shape.split(0, row)
    column_phase, column_shift = shape.split(1, column)
    plane = (channel * stride[0] + row_phase) * stride[1] + column_phase
    forward_blocks = _blocks(kept.numel(), outputs, shape.planes)
    backward_blocks = _blocks(kept.numel(), shape.planes, outputs)
    of_row = _block(plane, shape.planes, forward_blocks) * outputs + output
    of_column = _block(output, outputs, backward_blocks) * shape.planes + plane
    # Row-major order is by output channel already, and stable sorts keep it.
    forward, backward = of_row.argsort(stable=True), of_column.argsort(stable=True)
    value = torch.empty_like(backward)
    value[backward] = torch.arange(backward.numel())
    return ConvStructure(
        shape=shape,
        places=kept[backward],
        order=value[forward].int(),
        row_pointers=_pointers(of_row, outputs * forward_blocks),
        column_pointers=_pointers(of_column, shape.planes * backward_blocks),
        forward_blocks=forward_blocks,
        backward_blocks=backward_blocks,
        output=output[backward],
        plane=plane[backward],
        row_shift=row_shift[backward],
        column_shift=column_shift[backward],
    )


def _blocks(nnz: int, lists: int, planes: int) -> int:
    """Blocks that the planes are cut into: one, where lists would get too short."""
    blocks = -(-planes // _BLOCK)
    return blocks if nnz >= _SHORTEST * lists * blocks else 1


def _block(plane: Tensor, planes: int, blocks: int) -> Tensor:
    return plane.div(-(-planes // blocks), rounding_mode="floor")


def _pointers(of: Tensor, lists: int) -> Tensor:
    """Where the list of each number begins, once they are sorted: int32 (lists + 1,)."""
    pointers = torch.zeros(lists + 1, dtype=torch.int32)
    pointers[1:] = torch.bincount(of, minlength=lists).cumsum(0)
    return pointers
