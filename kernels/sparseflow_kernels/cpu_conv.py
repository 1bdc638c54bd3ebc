"""Sparse 2-d convolutions on the CPU: tensors in, tensors out, one kernel call each way.

Activations are float32 or bfloat16; the arithmetic is float32.

Shapes: N images, C input and O output channels, H, W; Z kept weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparseflow_kernels.cpu_calls import ALONE, CPU, STORAGE, check_bias, check_output, flat_float32, keep
from sparseflow_kernels.cpu_conv_backward import ConvBackward, backward_kernel, backward_room
from sparseflow_kernels.cpu_conv_forward import ConvForward, forward_kernel, forward_room
from sparseflow_kernels.cpu_conv_geometry import Geometry, axes, geometry
from sparseflow_kernels.cpu_conv_structure import ConvStructure
from sparseflow_kernels.cpu_conv_tiles import Variant
from sparseflow_kernels.cpu_jit import Prepared
from sparseflow_kernels.cpu_scratch import keep_freed_memory, scratch
from sparseflow_kernels.cpu_target import Target

# Image and batch sizes that a convolution remembers.
_REMEMBERED = 12

_FORWARD = {name: number for number, name in enumerate(ConvForward._fields)}
_BACKWARD = {name: number for number, name in enumerate(ConvBackward._fields)}


class _Call(NamedTuple):
    """What is the same in all calls with images of equal number and size."""

    kernel: Prepared
    threads: int
    # Bytes.
    scratch: int
    size: tuple[int, int]
    geometry: Geometry
    # The kernel knows only its address.
    offsets: Tensor


class Conv:
    """The products of one weight. Everything that depends on shapes alone is worked out once."""

    def __init__(self, structure: ConvStructure, target: Target) -> None:
        keep_freed_memory()
        self.structure, self.target = structure, target
        self._forward: dict[object, _Call] = {}
        self._backward: dict[object, _Call] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the indices that it has made for the image sizes seen so far."""
        calls = [*self._forward.values(), *self._backward.values()]
        return sum({call.offsets.data_ptr(): call.offsets.nbytes for call in calls}.values())

    def forward(self, x: Tensor, values_Z: Tensor, bias_O: Tensor | None, relu: bool, threads: int) -> Tensor:
        """relu(conv(x) + b), (N, O, H', W'), contiguous and of x's dtype.

        `ValueError` where a shape, dtype or device is not what the weight needs.
        """
        bias_shape = None if bias_O is None else bias_O.shape
        key = (x.shape, x.dtype, x.device, values_Z.shape, relu, bias_shape, threads)
        call = self._forward.get(key)
        if call is None:
            self._check(x, values_Z)
            check_bias(bias_O, self.structure.shape.outputs)
            call = keep(self._forward, key, self._prepare_forward(x, relu, threads), _REMEMBERED)
        y = torch.empty((x.shape[0], self.structure.shape.outputs, *call.size), dtype=x.dtype, device=CPU)
        if not y.numel():
            return y
        x, values = x.contiguous(), flat_float32(values_Z)
        bias = None if bias_O is None else flat_float32(bias_O)
        block: Any = call.kernel.block()
        block[_FORWARD["x"]], block[_FORWARD["y"]] = x.data_ptr(), y.data_ptr()
        block[_FORWARD["values"]] = values.data_ptr()
        block[_FORWARD["bias"]] = 0 if bias is None else bias.data_ptr()
        block[_FORWARD["scratch"]] = scratch(call.scratch)
        call.kernel.run(block, call.threads)
        return y

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        values_Z: Tensor,
        need_dx: bool,
        need_dbias: bool,
        threads: int,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """(dx (N, C, H, W), dvalues (Z,), dbias (O,)), None where not needed.

        `y` is the forward's output if it did a ReLU, else None.
        """
        rectified = None if y is None else (y.shape, y.dtype)
        key = (x.shape, x.dtype, x.device, dy.shape, dy.dtype, rectified, values_Z.shape, need_dx, threads)
        call = self._backward.get(key)
        if call is None:
            self._check(x, values_Z)
            call = self._prepare_backward(x, need_dx, threads)
            expected = (x.shape[0], self.structure.shape.outputs, *call.size)
            check_output("dy", dy, expected, x)
            check_output("y", y, expected, x)
            keep(self._backward, key, call, _REMEMBERED)
        if not dy.numel():
            dbias = dy.new_zeros(dy.shape[1]) if need_dbias else None
            return torch.zeros_like(x) if need_dx else None, torch.zeros_like(values_Z), dbias
        dx = torch.empty(x.shape, dtype=x.dtype, device=CPU) if need_dx else None
        dvalues = torch.empty(values_Z.shape, dtype=torch.float32, device=CPU)
        dbias = torch.empty(dy.shape[1], dtype=torch.float32, device=CPU) if need_dbias else None
        dy, x, values = dy.contiguous(), x.contiguous(), flat_float32(values_Z)
        y = y if y is None else y.contiguous()
        block: Any = call.kernel.block()
        block[_BACKWARD["dy"]], block[_BACKWARD["x"]] = dy.data_ptr(), x.data_ptr()
        block[_BACKWARD["y"]] = 0 if y is None else y.data_ptr()
        block[_BACKWARD["dx"]] = 0 if dx is None else dx.data_ptr()
        block[_BACKWARD["values"]], block[_BACKWARD["dvalues"]] = values.data_ptr(), dvalues.data_ptr()
        block[_BACKWARD["dbias"]] = 0 if dbias is None else dbias.data_ptr()
        block[_BACKWARD["scratch"]] = scratch(call.scratch)
        call.kernel.run(block, call.threads)
        if dbias is not None and not call.geometry.packs_all_dy:
            dbias = (dy if y is None else torch.where(y <= 0, 0, dy)).sum((0, 2, 3), dtype=torch.float32)
        return dx, dvalues.to(values_Z.dtype), None if dbias is None else dbias.to(x.dtype)

    def _prepare_forward(self, x: Tensor, relu: bool, threads: int) -> _Call:
        structure = self.structure
        shape, blocks = structure.shape, structure.forward_blocks
        found, size, threads = self._arrange(x, threads)
        offsets = structure.forward_offsets(found)
        room = _padded(forward_room(found, shape.channels, shape.outputs))
        variant = Variant(self.target, found, STORAGE[x.dtype], blocks > 1)
        arguments: ConvForward[int] = ConvForward(
            x=0,
            y=0,
            values=0,
            bias=0,
            relu=relu,
            scratch=0,
            room=room,
            order=structure.order.data_ptr(),
            offsets=offsets.data_ptr(),
            pointers=structure.row_pointers.data_ptr(),
            blocks=blocks,
            images=x.shape[0],
            channels=shape.channels,
            outputs=shape.outputs,
            nnz=structure.nnz,
        )
        prepared = forward_kernel(variant).prepare(*arguments.all())
        return _Call(prepared, threads, 4 * (threads * room + structure.nnz), size, found, offsets)

    def _prepare_backward(self, x: Tensor, need_dx: bool, threads: int) -> _Call:
        structure = self.structure
        shape, blocks = structure.shape, structure.backward_blocks
        found, size, threads = self._arrange(x, threads)
        offsets = structure.backward_offsets(found)
        room = _padded(backward_room(found, shape.channels, shape.outputs))
        bias_place = _padded(structure.nnz)
        own_sums = bias_place + _padded(shape.outputs)
        variant = Variant(self.target, found, STORAGE[x.dtype], blocks > 1, need_dx)
        arguments: ConvBackward[int] = ConvBackward(
            dy=0,
            x=0,
            y=0,
            dx=0,
            values=0,
            dvalues=0,
            dbias=0,
            scratch=0,
            room=room,
            own_sums=own_sums,
            bias_place=bias_place,
            offsets=offsets.data_ptr(),
            pointers=structure.column_pointers.data_ptr(),
            blocks=blocks,
            images=x.shape[0],
            channels=shape.channels,
            outputs=shape.outputs,
            nnz=structure.nnz,
        )
        prepared = backward_kernel(variant).prepare(*arguments.all())
        return _Call(prepared, threads, 4 * threads * (room + own_sums), size, found, offsets)

    def _arrange(self, x: Tensor, threads: int) -> tuple[Geometry, tuple[int, int], int]:
        """How such images are laid out, the size of y, and how many threads are worth it."""
        shape = self.structure.shape
        images, _, height, width = x.shape
        rows, columns = shape.axis(0, height), shape.axis(1, width)
        size = rows.out, columns.out
        if min(size) < 1:
            raise ValueError(
                f"expected images of at least the kernel's extent, got {height} x {width} for a kernel "
                f"of {shape.kernel} with padding {shape.padding}: "
                "enlarge the images or the padding"
            )
        if self.structure.nnz * images * size[0] * size[1] < ALONE:
            threads = 1
        planes = max(shape.channels, shape.outputs)
        lanes = self.target.lanes
        return geometry(*axes(rows, columns, lanes), lanes, planes, max(images, 1), threads), size, threads

    def _check(self, x: Tensor, values: Tensor) -> None:
        channels, nnz = self.structure.shape.channels, self.structure.nnz
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"expected x of shape (N, {channels}, H, W), got {tuple(x.shape)}")
        if values.shape != (nnz,):
            raise ValueError(f"expected values of shape ({nnz},), got {tuple(values.shape)}")
        if x.dtype not in STORAGE or not x.is_cpu:
            raise ValueError(f"expected x of float32 or bfloat16 on the CPU, got {x.dtype} on {x.device}")


def _padded(floats: int) -> int:
    """Rounded up to whole cache lines, so that no two threads write to the same."""
    return -(-floats // 64) * 64
