"""Sparse linear layers on the CPU: tensors in, tensors out, one kernel call each way.

Activations are float32 or bfloat16, row-major or feature-major (stride(0) == 1); the arithmetic is float32.

Shapes: B rows, I in, O out, Z kept weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparseflow_kernels.cpu_calls import ALONE, CPU, STORAGE, check_bias, check_output, flat_float32, keep
from sparseflow_kernels.cpu_copies import pack_function, unpack_function
from sparseflow_kernels.cpu_jit import Prepared
from sparseflow_kernels.cpu_linear_backward import Backward, backward_kernel, columns_function
from sparseflow_kernels.cpu_linear_forward import Forward, forward_kernel, rows_function
from sparseflow_kernels.cpu_scratch import keep_freed_memory, scratch
from sparseflow_kernels.cpu_structure import Structure
from sparseflow_kernels.cpu_target import Target
from sparseflow_kernels.cpu_tiles import VECTORS

# Batch sizes and strides that a linear layer remembers.
_REMEMBERED = 256

# Where tiles are half as wide: weights with so many features on a side, and less than this density.
_LARGE, _FEW = 1024, 0.06
# A feature that is read more often than this, in a batch of several tiles, is copied into a dense tile first.
_OFTEN = 128

_FORWARD = {name: number for number, name in enumerate(Forward._fields)}
_BACKWARD = {name: number for number, name in enumerate(Backward._fields)}


class _Call(NamedTuple):
    """What is the same in all calls with tensors of equal shapes and strides."""

    kernel: Prepared
    # Shape and strides of y or dx.
    shape: tuple[int, int]
    strides: tuple[int, int]
    scratch: int
    alone: bool


class Linear:
    """The products of one weight. Everything that depends on shapes and strides alone is worked out once."""

    def __init__(self, structure: Structure, target: Target) -> None:
        keep_freed_memory()
        self.structure, self.target = structure, target
        # Batch rows of a tile. What a sparse row or column gathers comes from all over the tile, so that narrower
        # ones, which stay in the second-level cache, are worth the more loop overhead.
        large = max(structure.outputs, structure.inputs) > _LARGE
        few = structure.nnz < _FEW * structure.outputs * structure.inputs
        self.width = (VECTORS // 2 if large and few else VECTORS) * target.lanes
        # Whole squares of a tile are read at its end.
        self._margin = 4 * target.lanes * self.width
        self._forward: dict[object, _Call] = {}
        self._backward: dict[object, _Call] = {}

    def forward(
        self, x_BI: Tensor, values_Z: Tensor, bias_O: Tensor | None, relu: bool, feature_major: bool, threads: int
    ) -> Tensor:
        """relu(x Wᵀ + b), (B, O), of x's dtype: feature-major if asked for, else contiguous.

        `ValueError` where a shape, dtype or device is not what the weight needs.
        """
        x = _readable(x_BI)
        bias_shape = None if bias_O is None else bias_O.shape
        key = (x.shape, x.stride(), x.dtype, values_Z.shape, bias_shape, relu, feature_major)
        call = self._forward.get(key)
        if call is None:
            self._check(x, values_Z)
            check_bias(bias_O, self.structure.outputs)
            if not x.shape[0]:
                return x.new_empty(0, self.structure.outputs)
            call = keep(self._forward, key, self._prepare_forward(x, relu, feature_major), _REMEMBERED)
        y = torch.empty_strided(call.shape, call.strides, dtype=x.dtype, device=CPU)
        bias = None if bias_O is None else flat_float32(bias_O)
        weights = flat_float32(values_Z)
        block: Any = call.kernel.block()
        block[_FORWARD["x"]], block[_FORWARD["y"]] = x.data_ptr(), y.data_ptr()
        block[_FORWARD["weights"]] = weights.data_ptr()
        block[_FORWARD["bias"]] = 0 if bias is None else bias.data_ptr()
        block[_FORWARD["scratch"]] = scratch(call.scratch)
        call.kernel.run(block, 1 if call.alone else threads)
        return y

    def backward(
        self,
        dy_BO: Tensor,
        x_BI: Tensor,
        y_BO: Tensor | None,
        values_Z: Tensor,
        need_dx: bool,
        need_dbias: bool,
        threads: int,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """(dx (B, I), dvalues (Z,), dbias (O,)), None where not needed; dx is feature-major where x is.

        `y_BO` is the forward's output if it did a ReLU, else None.
        """
        dy, x = _readable(dy_BO), _readable(x_BI)
        y = None if y_BO is None else _like(y_BO, dy)
        rectified = None if y is None else (y.shape, y.stride(), y.dtype)
        key = (x.shape, x.stride(), x.dtype, dy.shape, dy.stride(), dy.dtype, values_Z.shape, rectified)
        call = self._backward.get((key, need_dx))
        if call is None:
            self._check(x, values_Z, dy, y)
            if not x.shape[0]:
                return self._nothing(x, values_Z, need_dx, need_dbias)
            call = keep(self._backward, (key, need_dx), self._prepare_backward(dy, x, y, need_dx), _REMEMBERED)
        dx = torch.empty_strided(call.shape, call.strides, dtype=x.dtype, device=CPU) if need_dx else None
        dvalues = torch.empty(values_Z.shape, dtype=torch.float32, device=CPU)
        dbias = torch.empty(self.structure.outputs, dtype=torch.float32, device=CPU) if need_dbias else None
        weights = flat_float32(values_Z)
        block: Any = call.kernel.block()
        block[_BACKWARD["g"]], block[_BACKWARD["x"]] = dy.data_ptr(), x.data_ptr()
        block[_BACKWARD["weights"]], block[_BACKWARD["products"]] = weights.data_ptr(), dvalues.data_ptr()
        block[_BACKWARD["y"]] = 0 if y is None else y.data_ptr()
        block[_BACKWARD["d"]] = 0 if dx is None else dx.data_ptr()
        block[_BACKWARD["bias_sums"]] = 0 if dbias is None else dbias.data_ptr()
        block[_BACKWARD["scratch"]] = scratch(call.scratch)
        call.kernel.run(block, 1 if call.alone else threads)
        if x.dtype is torch.float32:
            return dx, dvalues, dbias
        return dx, dvalues.to(values_Z.dtype), None if dbias is None else dbias.to(x.dtype)

    def _nothing(
        self, x: Tensor, values: Tensor, need_dx: bool, need_dbias: bool
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """The gradients of a batch without rows."""
        dbias = x.new_zeros(self.structure.outputs) if need_dbias else None
        return torch.empty_like(x) if need_dx else None, torch.zeros_like(values), dbias

    def _prepare_forward(self, x: Tensor, relu: bool, feature_major: bool) -> _Call:
        structure, width = self.structure, self.width
        rows, inputs, outputs = x.shape[0], structure.inputs, structure.outputs
        strides = (1, rows) if feature_major else (outputs, 1)
        storage, target = STORAGE[x.dtype], self.target
        x_bytes, y_bytes = 4 * inputs * width, 4 * outputs * width
        prepared = forward_kernel(target).prepare(
            *Forward(
                x=0,
                x_row=x.stride(0),
                x_feature=x.stride(1),
                x_ready=self._gatherable(x, structure.inputs),
                y=0,
                y_row=strides[0],
                y_feature=strides[1],
                y_ready=strides[0] == 1 and x.dtype == torch.float32,
                weights=0,
                order=structure.order.data_ptr(),
                columns=structure.columns.data_ptr(),
                pointers=structure.row_pointers.data_ptr(),
                work=structure.row_work.data_ptr(),
                blocks=structure.row_pointers.shape[0],
                bias=0,
                relu=relu,
                rows=rows,
                inputs=inputs,
                outputs=outputs,
                x_tile=0,
                y_tile=x_bytes,
                gathered=x_bytes + y_bytes,
                scratch=0,
                width=width,
                pack=pack_function(target, storage),
                unpack=unpack_function(target, storage),
                full_tile=rows_function(target, width // target.lanes) if rows > width else 0,
                last_tile=rows_function(target, self._last_tile(rows)),
            ).all()
        )
        room = x_bytes + y_bytes + 4 * structure.nnz + self._margin
        return _Call(prepared, (rows, outputs), strides, room, self._alone(rows))

    def _prepare_backward(self, dy: Tensor, x: Tensor, y: Tensor | None, need_dx: bool) -> _Call:
        structure, width = self.structure, self.width
        rows, inputs, outputs = x.shape[0], structure.inputs, structure.outputs
        feature_major = _is_feature_major(x)
        in_place = feature_major and x.dtype == torch.float32
        strides = (1, rows) if feature_major else (inputs, 1)
        storage, target = STORAGE[x.dtype], self.target
        g_bytes, x_bytes = 4 * outputs * width, 4 * inputs * width
        prepared = backward_kernel(target).prepare(
            *Backward(
                g=0,
                g_row=dy.stride(0),
                g_feature=dy.stride(1),
                g_ready=y is None and self._gatherable(dy, structure.outputs),
                y=0,
                y_row=0 if y is None else y.stride(0),
                y_feature=0 if y is None else y.stride(1),
                x=0,
                x_row=x.stride(0),
                x_feature=x.stride(1),
                x_ready=in_place,
                d=0,
                d_row=strides[0],
                d_feature=strides[1],
                d_ready=in_place,
                weights=0,
                products=0,
                rows_of=structure.rows.data_ptr(),
                pointers=structure.column_pointers.data_ptr(),
                work=structure.column_work.data_ptr(),
                blocks=structure.column_pointers.shape[0],
                bias_sums=0,
                rows=rows,
                inputs=inputs,
                outputs=outputs,
                g_tile=0,
                x_tile=g_bytes,
                d_tile=g_bytes + x_bytes,
                scratch=0,
                width=width,
                pack=pack_function(target, storage),
                unpack=unpack_function(target, storage),
                full_tile=columns_function(target, width // target.lanes, need_dx) if rows > width else 0,
                last_tile=columns_function(target, self._last_tile(rows), need_dx),
            ).all()
        )
        room = g_bytes + 2 * x_bytes + self._margin
        return _Call(prepared, (rows, inputs), strides, room, self._alone(rows))

    def _check(self, x: Tensor, values: Tensor, dy: Tensor | None = None, y: Tensor | None = None) -> None:
        structure = self.structure
        if x.dim() != 2 or x.shape[1] != structure.inputs:
            raise ValueError(f"expected x of shape (rows, {structure.inputs}), got {tuple(x.shape)}")
        if values.dim() != 1 or values.shape[0] != structure.nnz:
            raise ValueError(f"expected {structure.nnz} values, got shape {tuple(values.shape)}")
        if x.dtype not in STORAGE:
            raise ValueError(f"expected float32 or bfloat16, got {x.dtype}")
        check_output("dy", dy, (x.shape[0], structure.outputs), x)
        check_output("y", y, (x.shape[0], structure.outputs), x)

    def _last_tile(self, rows: int) -> int:
        """Vectors of the last of the tiles into which so many rows are cut."""
        vectors = self.width // self.target.lanes
        return (-(-rows // self.target.lanes) - 1) % vectors + 1

    def _gatherable(self, x: Tensor, features: int) -> bool:
        """Whether kernels gather from x where it is: else its tiles are copied, with zeros behind the last row.

        A copy of a larger batch pays where each feature is read so often that a dense tile's better use of the cache
        outweighs it.
        """
        rows = x.shape[0]
        if rows % self.target.lanes or not _is_feature_major(x) or x.dtype != torch.float32:
            return False
        return rows <= self.width or self.structure.nnz < _OFTEN * features

    def _alone(self, rows: int) -> bool:
        return self.structure.nnz * rows < ALONE


def _readable(x: Tensor) -> Tensor:
    """The matrix itself where the kernels can walk its strides, else a contiguous copy."""
    if not x.is_cpu:
        raise ValueError(f"expected tensors on the CPU, got {x.device}")
    if x.is_neg():
        x = x.resolve_neg()
    return x if x.stride(-1) == 1 or x.stride(0) == 1 else x.contiguous()


def _is_feature_major(x: Tensor) -> bool:
    # What kernels go by; a single row is both.
    return x.stride(0) == 1 and x.shape[0] > 1


def _like(y: Tensor, dy: Tensor) -> Tensor:
    """y with its batch or its features contiguous, as dy has them: both are walked alike."""
    if (y.stride(0) == 1) == (dy.stride(0) == 1) and (y.stride(1) == 1) == (dy.stride(1) == 1):
        return y
    return y.t().contiguous().t() if dy.stride(0) == 1 else y.contiguous()
