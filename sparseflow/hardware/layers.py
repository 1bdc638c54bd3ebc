"""SparseLinear, SparseConv2d: layers whose parameter is their kept values, in their backend's order.

What every backend needs alike is done here once: bias gradient, autocast, shape checks, state dicts, and the dense
weight gradient where an algorithm asks for it. A backend sees 2-D rows or 4-D images and its own values.

Shapes: B rows, I in, O out, C channels, Z values (nnz and padding).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseflow.hardware import backends
from sparseflow.hardware.backends import SparseOp
from sparseflow.hardware.backends.base import FusedOp, MasterOp
from sparseflow.hardware.bits import pack_bits, unpack_bits
from sparseflow.hardware.dense_gradient import DenseGradient
from sparseflow.hardware.moving import NOTHING_ON_META, moved
from sparseflow.hardware.optimizers import layers_of, mark_replaced, watch
from sparseflow.hardware.places import mask_of
from sparseflow.hardware.product import autocast_operands, autocasts, fused_product, handle_of, product, unpack
from sparseflow.hardware.relu import mark_rectified
from sparseflow.hardware.workload import Geometry


class SparseLayer(nn.Module):
    """What SparseLinear and SparseConv2d share. Abstract: `forward` belongs to the two.

    `values` is the only weight parameter. `weight` is a dense tensor made on each access, with gradient: slow, and
    there for parents that look at it. State dicts hold `weight_values` (the kept weights in row-major order of the
    dense parameter) and `weight_mask` (bits, little order), whatever the backend; loading takes those or a dense
    `weight`, of which the layer's own mask keeps its places.

    With `relu` the layer applies max(0, y) to its own output. With `feature_major` it gives that output with the
    batch contiguous, where its backend can: for layers whose output goes to another such layer. `sparsify` sets both
    where no hook sees that output; a hook registered afterwards gets it rectified, and batch-contiguous.
    """

    values: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        backend: str,
        op: SparseOp,
        values: nn.Parameter,
        bias: nn.Parameter | None,
        geometry: Geometry,
        shape: tuple[int, ...],
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.backend = backend
        self.values = values
        self.register_parameter("bias", bias)
        self.geometry = geometry
        # The shape of the dense parameter; transformers' Conv1D stores (in, out).
        self.weight_shape = shape
        self.transposed = transposed
        self.relu = False
        self.feature_major = False
        self.dense_gradient: DenseGradient | None = None
        self._install(op)
        watch(self)

    @property
    def op(self) -> SparseOp:
        """The index structure, packed once per mask."""
        return self._op

    @property
    def mask(self) -> Tensor:
        """Bool tensor of the dense parameter's shape, True = kept; made on each access."""
        shape = self.weight_shape[::-1] if self.transposed else self.weight_shape
        return self._stored(mask_of(self.op, self.values, shape))

    @property
    def weight(self) -> Tensor:
        """The dense weight, zeros at pruned places, differentiable with respect to `values`. Slow, read-only."""
        return self._stored(unpack(self.values, self._handle))

    def pack(self, tensor: Tensor) -> Tensor:
        """A tensor like the dense parameter (its values, or an optimizer's moments) → native order."""
        return self.op.pack_values(self._stored(tensor))

    def unpack(self, values: Tensor) -> Tensor:
        """Native order → a tensor like the dense parameter, +0.0 at pruned places."""
        return self._stored(self.op.unpack_values(values)).contiguous()

    def repack(self, mask: Tensor) -> SparseOp:
        """The op of another mask for the same backend and native order; changes nothing here."""
        mask = self._stored(mask.to(self.values.device)).contiguous()
        return backends.get(self.backend).pack(mask, self.op.layout)

    def install(self, op: SparseOp, values: Tensor) -> None:
        """Takes another structure with its values, together with every layer that shares the old ones.

        Equal lengths keep the Parameter and copy in place.
        """
        old = new = self.values
        if values.shape == old.shape:
            with torch.no_grad():
                old.copy_(values)
        else:
            new = nn.Parameter(values, requires_grad=old.requires_grad)
            mark_replaced(old)
        for layer in layers_of(old):
            assert isinstance(layer, SparseLayer)
            layer.values = new
            layer._install(op)

    def remask_values_(self) -> None:
        """Clears whatever stands at padding and pruned places of `values`."""
        with torch.no_grad():
            self.values.copy_(self.op.pack_values(self.op.unpack_values(self.values)))

    def _install(self, op: SparseOp) -> None:
        self._op = op
        self._handle = handle_of(op)
        self._fused = isinstance(op, FusedOp)
        self._short = op.compute_dtypes if isinstance(op, MasterOp) else ()

    def _stored(self, tensor: Tensor) -> Tensor:
        # Its own inverse: between the dense parameter's shape and the logical (O, I) that backends see.
        return tensor.t() if self.transposed else tensor

    def _description(self) -> str:
        flags = "".join(f", {name}=True" for name in ("relu", "feature_major") if getattr(self, name))
        return f"nnz={self.op.nnz:,}, backend={self.backend!r}{flags}"

    def _product(self, x: Tensor) -> Tensor:
        # From where nn.Module keeps them: its look-up of an attribute takes half a microsecond.
        parameters = self._parameters
        values, bias = cast(Tensor, parameters["values"]), cast("Tensor | None", parameters["bias"])
        if autocast := autocasts(x.device.type):
            x, values, bias = autocast_operands(x, values, bias, self._short)
        if x.dtype != values.dtype and not (autocast and x.dtype in self._short):
            raise ValueError(f"{type(self).__name__}: expected an input of {values.dtype}, got {x.dtype}")
        if self._fused:
            return fused_product(x, values, bias, self._handle, self.dense_gradient, self.relu, self.feature_major)
        y = product(x, values, bias, self._handle, self.dense_gradient)
        return torch.relu(y) if self.relu else y

    # How nn.Module lets a layer move, copy and load: the indices go with the values.

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLayer:
        # First, for it may refuse.
        indices = moved(self.op.tensors(), fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._install(self.op.with_tensors(indices))
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        # deepcopy and pickle come here: the copy needs a handle of its own.
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._install(self._op)
        watch(self)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        mask = self.mask
        weight = self.weight if keep_vars else self.unpack(self.values.detach())
        destination[prefix + "weight_values"] = weight[mask]
        destination[prefix + "weight_mask"] = pack_bits(mask)
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        known = {prefix + key for key in ("weight", "weight_values", "weight_mask", "bias")}
        if strict:
            unexpected_keys.extend(key for key in state_dict if key.startswith(prefix) and key not in known)
        try:
            self._load_weight(state_dict, prefix, missing_keys)
            self._load_bias(state_dict, prefix, missing_keys)
        except ValueError as error:
            error_msgs.append(str(error))

    def _load_weight(self, state: Mapping[str, Any], prefix: str, missing_keys: list[str]) -> None:
        if self.values.is_meta:
            raise ValueError(f"{prefix}weight: nothing can be loaded on the meta device: {NOTHING_ON_META}")
        if prefix + "weight" in state:
            weight = state[prefix + "weight"]
            if tuple(weight.shape) != self.weight_shape:
                raise ValueError(f"{prefix}weight: expected shape {self.weight_shape}, got {tuple(weight.shape)}")
            self.install(self.op, self.pack(weight.detach().to(self.values)))
            return
        absent = [prefix + key for key in ("weight_values", "weight_mask") if prefix + key not in state]
        if absent:
            missing_keys.extend(absent)
            return
        device = self.values.device
        mask = unpack_bits(state[prefix + "weight_mask"].to(device), self.weight_shape, prefix + "weight_mask")
        kept, count = state[prefix + "weight_values"].detach().to(self.values), int(mask.sum())
        if len(kept) != count:
            raise ValueError(f"{prefix}weight_values: expected {count} kept weights by weight_mask, got {len(kept)}")
        weight = torch.zeros(self.weight_shape, dtype=kept.dtype, device=device)
        weight[mask] = kept
        op = self.op if torch.equal(mask, self.mask) else self.repack(mask)
        self.install(op, op.pack_values(self._stored(weight)))

    def _load_bias(self, state: Mapping[str, Any], prefix: str, missing_keys: list[str]) -> None:
        if self.bias is None:
            return
        if prefix + "bias" not in state:
            missing_keys.append(prefix + "bias")
            return
        bias = state[prefix + "bias"]
        if bias.shape != self.bias.shape:
            raise ValueError(f"{prefix}bias: expected shape {tuple(self.bias.shape)}, got {tuple(bias.shape)}")
        with torch.no_grad():
            self.bias.copy_(bias)


class SparseLinear(SparseLayer):
    """y = x Wᵀ + b over the kept weights of W; x is (..., I), y is (..., O)."""

    @property
    def in_features(self) -> int:
        return self.weight_shape[0 if self.transposed else 1]

    @property
    def out_features(self) -> int:
        return self.weight_shape[1 if self.transposed else 0]

    def forward(self, input: Tensor) -> Tensor:
        # The name is torch's, for callers who give it by keyword.
        x = input
        if x.shape[-1] != self.in_features:
            raise ValueError(f"SparseLinear: expected inputs of width {self.in_features}, got {tuple(x.shape)}")
        if x.dim() == 2:
            y = self._product(x)
        else:
            # Feature-major tensors of any rank are views of such matrices, so neither line copies them. Inside of
            # the autograd Function it would cost more, and in-place operations on the output would be refused.
            y = self._product(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)
        if self.relu:
            mark_rectified(y)
        return y

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self._description()}"


class SparseConv2d(SparseLayer):
    """torch's Conv2d over the kept weights; x is (B, C, H, W) or (C, H, W), every padding mode."""

    def __init__(
        self,
        backend: str,
        op: SparseOp,
        values: nn.Parameter,
        bias: nn.Parameter | None,
        geometry: Geometry,
        shape: tuple[int, ...],
        extra_padding: tuple[int, ...] | None = None,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(backend, op, values, bias, geometry, shape)
        # What the op's symmetric zero padding cannot say is padded here, before the product.
        self.extra_padding = extra_padding
        self.padding_mode = padding_mode

    @property
    def in_channels(self) -> int:
        return self.weight_shape[1] * self.geometry.groups

    @property
    def out_channels(self) -> int:
        return self.weight_shape[0]

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(f"SparseConv2d: expected ({self.in_channels} channels, H, W), got {tuple(x.shape)}")
        x_BCHW = x if x.dim() == 4 else x.unsqueeze(0)
        if self.extra_padding is not None:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x_BCHW = F.pad(x_BCHW, self.extra_padding, mode=mode)
        y = self._product(x_BCHW)
        if x.dim() == 3:
            y = y.squeeze(0)
        if self.relu:
            mark_rectified(y)
        return y

    def extra_repr(self) -> str:
        sizes = f"{self.in_channels}, {self.out_channels}, {tuple(self.weight_shape[2:])}"
        return f"{sizes}, {self.geometry}, {self._description()}"
