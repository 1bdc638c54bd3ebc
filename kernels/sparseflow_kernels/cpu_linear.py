"""Sparse linear layers on the CPU: tensors in, tensors out, one kernel call each way.

Activations are float32 or bfloat16 (`Storage`), row-major or feature-major (stride(0) == 1); the arithmetic is float32.

Shapes: B rows, I in, O out, Z kept weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseflow_kernels.cpu_ir import Storage
from sparseflow_kernels.cpu_linear_backward import Backward, backward_kernel
from sparseflow_kernels.cpu_linear_forward import Forward, forward_kernel
from sparseflow_kernels.cpu_scratch import scratch
from sparseflow_kernels.cpu_structure import Structure
from sparseflow_kernels.cpu_target import Target
from sparseflow_kernels.cpu_tiles import batch_class, tile_rows

STORAGE: dict[torch.dtype, Storage] = {torch.float32: "f32", torch.bfloat16: "bf16"}

# Below this many multiply-adds a second thread costs more than it brings.
_ALONE = 200_000


def forward(
    x_BI: Tensor,
    values_Z: Tensor,
    bias_O: Tensor | None,
    structure: Structure,
    relu: bool,
    feature_major: bool,
    target: Target,
    threads: int,
) -> Tensor:
    """relu(x Wᵀ + b), (B, O), of x's dtype: feature-major if asked for, else contiguous."""
    rows, inputs = x_BI.shape
    outputs = structure.outputs
    x = readable(x_BI)
    shape = (outputs, rows) if feature_major else (rows, outputs)
    y = torch.empty(shape, dtype=x.dtype)
    y_BO = y.t() if feature_major else y
    if rows == 0:
        return y_BO
    bias = None if bias_O is None else bias_O.float()
    weights = values_Z.float()
    width = tile_rows(target)
    call = forward_kernel(target, batch_class(target, rows), STORAGE[x.dtype])
    call(
        threads if structure.nnz * rows > _ALONE else 1,
        *Forward(
            x=x.data_ptr(),
            x_row=x.stride(0),
            x_feature=x.stride(1),
            x_ready=_gatherable(x, target),
            y=y.data_ptr(),
            y_row=y_BO.stride(0),
            y_feature=y_BO.stride(1),
            y_ready=feature_major and y.dtype == torch.float32,
            weights=weights.data_ptr(),
            order=structure.order.data_ptr(),
            columns=structure.columns.data_ptr(),
            pointers=structure.row_pointers.data_ptr(),
            work=structure.row_work.data_ptr(),
            blocks=structure.row_pointers.shape[0],
            bias=0 if bias is None else bias.data_ptr(),
            relu=relu,
            rows=rows,
            inputs=inputs,
            outputs=outputs,
            x_tile=scratch("x", inputs * width),
            y_tile=scratch("y", outputs * width),
            gathered=scratch("weights", structure.nnz),
        ),
    )
    return y_BO


def backward(
    dy_BO: Tensor,
    x_BI: Tensor,
    y_BO: Tensor | None,
    values_Z: Tensor,
    structure: Structure,
    need_dx: bool,
    need_dbias: bool,
    target: Target,
    threads: int,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """(dx (B, I), dvalues (Z,), dbias (O,)), None where not needed; dx is feature-major where x is.

    `y_BO` is the forward's output if it did a ReLU, else None.
    """
    rows, inputs = x_BI.shape
    outputs = structure.outputs
    dy, x = readable(dy_BO), readable(x_BI)
    dvalues = torch.empty(values_Z.shape, dtype=torch.float32)
    dbias = torch.empty(outputs) if need_dbias else None
    feature_major = _is_feature_major(x)
    d = dx = None
    if need_dx:
        d = torch.empty((inputs, rows) if feature_major else (rows, inputs), dtype=x.dtype)
        dx = d.t() if feature_major else d
    if rows == 0:
        return dx, dvalues.zero_().to(values_Z.dtype), None if dbias is None else dbias.zero_().to(dy.dtype)
    # Both must be walked alike.
    y = (
        None
        if y_BO is None
        else readable(y_BO if _is_feature_major(dy) == _is_feature_major(y_BO) else _like(y_BO, dy))
    )
    weights = values_Z.float()
    width = tile_rows(target)
    in_place = feature_major and x.dtype == torch.float32
    call = backward_kernel(target, batch_class(target, rows), STORAGE[x.dtype], need_dx, y is not None)
    call(
        threads if structure.nnz * rows > _ALONE else 1,
        *Backward(
            g=dy.data_ptr(),
            g_row=dy.stride(0),
            g_feature=dy.stride(1),
            g_ready=y is None and _gatherable(dy, target),
            y=0 if y is None else y.data_ptr(),
            y_row=0 if y is None else y.stride(0),
            y_feature=0 if y is None else y.stride(1),
            x=x.data_ptr(),
            x_row=x.stride(0),
            x_feature=x.stride(1),
            x_ready=in_place,
            d=0 if d is None else d.data_ptr(),
            d_row=0 if dx is None else dx.stride(0),
            d_feature=0 if dx is None else dx.stride(1),
            d_ready=in_place,
            weights=weights.data_ptr(),
            products=dvalues.data_ptr(),
            rows_of=structure.rows.data_ptr(),
            pointers=structure.column_pointers.data_ptr(),
            work=structure.column_work.data_ptr(),
            blocks=structure.column_pointers.shape[0],
            bias_sums=0 if dbias is None else dbias.data_ptr(),
            rows=rows,
            inputs=inputs,
            outputs=outputs,
            g_tile=scratch("y", outputs * width),
            x_tile=scratch("x", inputs * width),
            d_tile=scratch("d", inputs * width),
        ),
    )
    return dx, dvalues.to(values_Z.dtype), None if dbias is None else dbias.to(dy.dtype)


def readable(x: Tensor) -> Tensor:
    """The matrix itself where the kernels can walk its strides, else a contiguous copy."""
    return x if x.stride(1) == 1 or x.stride(0) == 1 else x.contiguous()


def _is_feature_major(x: Tensor) -> bool:
    # What kernels go by; a single row is both.
    return x.stride(0) == 1 and x.shape[0] > 1


def _like(y: Tensor, dy: Tensor) -> Tensor:
    return y.t().contiguous().t() if _is_feature_major(dy) else y.contiguous()


def _gatherable(x: Tensor, target: Target) -> bool:
    """Whether kernels may gather whole vectors of x where it is: else a tile is copied, with zeros behind the rows."""
    rows = x.shape[0]
    return _is_feature_major(x) and x.dtype == torch.float32 and rows % target.lanes == 0 and rows <= tile_rows(target)
