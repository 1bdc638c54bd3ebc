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
from sparseflow_kernels.cpu_structure import structure

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
    groups: int
    # Of each kept weight in the order of the values, in as few bytes as hold them: its output channel and its place
    # in the kernel, (Z,) each. Its input channel follows from the list in which it stands.
    output: Tensor
    tap: Tensor
    # Where a weight of the forward's lists stands among the values: int32 (Z,)
    order: Tensor
    # Where each list begins: int32 (F * O + 1,) and (B * planes + 1,)
    row_pointers: Tensor
    column_pointers: Tensor

    @property
    def nnz(self) -> int:
        return self.order.numel()

    @property
    def forward_blocks(self) -> int:
        return (self.row_pointers.numel() - 1) // self.shape.outputs

    @property
    def backward_blocks(self) -> int:
        return (self.column_pointers.numel() - 1) // self.shape.planes

    def places(self) -> Tensor:
        """Flat places in the weight, in the order of the values: int64 (Z,)."""
        shape = self.shape
        fan_in, taps = shape.channels // self.groups, shape.kernel[0] * shape.kernel[1]
        channel = self._planes().div(shape.stride[0] * shape.stride[1], rounding_mode="floor") % fan_in
        return (self.output.long() * fan_in + channel) * taps + self.tap.long()

    def forward_offsets(self, geometry: Geometry) -> Tensor:
        """Where in scratch memory each weight of the forward's lists reads x: int32 (Z,)."""
        layout = geometry.padded_x
        row_shift, column_shift = self._shifts()
        row = (row_shift - geometry.rows.low) * layout.pitch
        offsets = self._planes() * layout.size + row + layout.left + column_shift * geometry.group
        return offsets.int()[self.order]

    def backward_offsets(self, geometry: Geometry) -> Tensor:
        """Where in scratch memory each value reads dy: int32 (Z,)."""
        layout = geometry.padded_dy
        row_shift, column_shift = self._shifts()
        row = (geometry.rows.high - row_shift) * layout.pitch
        return (self.output.long() * layout.size + row + layout.left - column_shift * geometry.group).int()

    def _planes(self) -> Tensor:
        lists = torch.arange(self.shape.planes, device=self.order.device).repeat(self.backward_blocks)
        return lists.repeat_interleave(self.column_pointers.diff())

    def _shifts(self) -> tuple[Tensor, Tensor]:
        tap, width = self.tap.long(), self.shape.kernel[1]
        return self.shape.split(0, tap // width)[1], self.shape.split(1, tap % width)[1]


def conv_structure(
    mask: Tensor,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> ConvStructure:
    """The lists of a bool (O, C / groups, height, width) mask on the CPU. About 30 ms a million kept weights."""
    outputs, fan_in, height, width = mask.shape
    shape = ConvShape(outputs, fan_in * groups, (height, width), stride, padding, dilation)
    phases, taps = stride[0] * stride[1], height * width
    # The weight as a matrix, its columns by channel, then by phase: the lists are then ranges of columns.
    tap_order, first_taps = _by_phase(shape)
    flat = mask.reshape(outputs, fan_in, taps)[:, :, tap_order].reshape(outputs, fan_in * taps)
    nnz = int(mask.sum())
    channels_of_block = -(-shape.channels // _blocks(nnz, outputs, shape.planes))
    outputs_of_block = -(-outputs // _blocks(nnz, shape.planes, outputs))
    found = structure(_ungrouped(flat, groups), channels_of_block * taps, outputs_of_block)
    starts = (torch.arange(shape.channels, device="cpu").unsqueeze(1) * taps + first_taps).flatten()
    columns = torch.empty_like(found.columns)
    columns[found.order.long()] = found.columns
    assert starts.numel() == shape.channels * phases
    return ConvStructure(
        shape=shape,
        groups=groups,
        output=_short(found.rows, outputs),
        tap=_short(tap_order[columns.long() % taps], taps),
        order=found.order,
        row_pointers=_joined(found.row_pointers[:, :-1], nnz),
        column_pointers=_joined(found.column_pointers[:, starts], nnz),
    )


def _by_phase(shape: ConvShape) -> tuple[Tensor, Tensor]:
    """The places in the kernel sorted by the phase that they read, and which of them is the first of each phase."""
    height, width = shape.kernel
    taps = torch.arange(height * width, device="cpu")
    phase = shape.split(0, taps // width)[0] * shape.stride[1] + shape.split(1, taps % width)[0]
    counts = torch.bincount(phase, minlength=shape.stride[0] * shape.stride[1])
    return phase.argsort(stable=True), counts.cumsum(0) - counts


def _ungrouped(flat: Tensor, groups: int) -> Tensor:
    """(O, columns of a group) → (O, columns of all groups), False outside of each output's own group."""
    if groups == 1:
        return flat
    outputs, columns = flat.shape
    whole = flat.new_zeros(groups, outputs // groups, groups, columns)
    each = torch.arange(groups, device="cpu")
    whole[each, :, each] = flat.view(groups, outputs // groups, columns)
    return whole.view(outputs, groups * columns)


def _blocks(nnz: int, lists: int, planes: int) -> int:
    """Blocks that the planes are cut into: one, where lists would get too short."""
    blocks = -(-planes // _BLOCK)
    return blocks if nnz >= _SHORTEST * lists * blocks else 1


def _joined(starts: Tensor, nnz: int) -> Tensor:
    return torch.cat([starts.flatten(), starts.new_tensor([nnz])])


def _short(numbers: Tensor, limit: int) -> Tensor:
    """The same numbers, all below the limit, in one, two or four bytes."""
    return numbers.to(torch.uint8 if limit <= 2**8 else torch.int16 if limit <= 2**15 else torch.int32)
