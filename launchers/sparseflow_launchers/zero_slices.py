"""The fp32 weights of a live DeepSpeed engine as slices: what this rank holds, nothing gathered, padding excluded.

Rajbhandari et al., 2020 (arXiv:1910.02054): stages 1 and 2 cut the optimizer's flat fp32 copy of all weights into one
part a rank, stage 3 cuts every weight by itself. Stage 0 holds all of them on every rank.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparseflow.hardware.names import unwrapped
from sparseflow.masks.slices import Slice

# DeepSpeed has no types.
Engine = Any
# Where a flat tensor begins in the flattened weight, and the tensor.
Part = tuple[int, Tensor]


class Shards(Protocol):
    """What one rank holds of each parameter. `key` names a moment of the optimizer; None is the fp32 master."""

    # Whether every rank holds the same.
    replicated: bool

    def read(self, parameter: nn.Parameter, key: str | None = None) -> Part | None:
        """The flat fp32 tensor of this rank, without padding, or None where it holds nothing of the parameter."""

    def write(self, parameter: nn.Parameter, part: Tensor, key: str | None = None) -> None:
        """Puts a tensor of the size that `read` gave in its place."""

    def moments(self, parameter: nn.Parameter) -> list[str]:
        """The optimizer's tensors of the parameter's shape."""
        ...

    def forward_copies(self, parameter: nn.Parameter) -> list[Part]:
        """Views of what the next forward reads, where that is not the master itself."""
        ...

    def shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        """Of the whole parameter."""
        ...


def live_slices(engine: Engine, names: Collection[str] | None = None) -> list[Slice]:
    """The slices of this rank: dense name, index of the first weight, flat fp32 tensor; views where that is possible.

    names: the weights wanted, by default all; they keep the model's order. Over all ranks the slices cover every
    weight exactly once. Communicates nothing. Raises TypeError for an optimizer of DeepSpeed's that is not supported.
    """
    shards = shards_of(engine)
    found = []
    for name, parameter in named_parameters(engine):
        if names is not None and name not in names:
            continue
        part = shards.read(parameter)
        if part is None:
            continue
        start, flat = part
        if shards.replicated:
            begin, end = _share(len(flat), engine.global_rank, engine.world_size)
            start, flat = begin, flat[begin:end]
        if len(flat):
            found.append(Slice(name, start, flat))
    return found


def named_parameters(engine: Engine) -> Iterator[tuple[str, nn.Parameter]]:
    """Dense name and parameter, in the model's order; a tied one once."""
    for name, parameter in engine.module.named_parameters():
        yield unwrapped(name), parameter


def shards_of(engine: Engine) -> Shards:
    """What this rank holds, by the engine's stage. TypeError for an optimizer that is not supported."""
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    stage = engine.zero_optimization_stage()
    if stage == 3:
        return _Stage3(engine.optimizer)
    if stage or engine.zero_optimization():
        return _Stage12(engine.optimizer)
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        return _Stage0(engine.optimizer.state, {})
    if isinstance(engine.optimizer, FP16_UnfusedOptimizer):
        groups = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)
        masters = {low: high for lows, highs in groups for low, high in zip(lows, highs, strict=True)}
        return _Stage0(engine.optimizer.optimizer.state, masters)
    raise TypeError(
        f"expected an engine around an optimizer of torch.optim, got {type(engine.optimizer).__name__}; take the "
        "optimizer out of the DeepSpeed configuration, and pass one of torch.optim"
    )


class _Stage0:
    """Masters are the parameters themselves, or beside them where those are bf16."""

    replicated = True

    def __init__(self, state: Any, masters: dict[nn.Parameter, Tensor]) -> None:
        self._state, self._masters = state, masters

    def read(self, parameter: nn.Parameter, key: str | None = None) -> Part | None:
        master = self._masters.get(parameter, parameter)
        return 0, (master if key is None else self._state[master][key]).detach().view(-1)

    def write(self, parameter: nn.Parameter, part: Tensor, key: str | None = None) -> None:
        place = self.read(parameter, key)
        assert place is not None
        place[1].copy_(part)

    def moments(self, parameter: nn.Parameter) -> list[str]:
        master = self._masters.get(parameter, parameter)
        return _alike(self._state.get(master, {}), master.shape)

    def forward_copies(self, parameter: nn.Parameter) -> list[Part]:
        return [(0, parameter.detach().view(-1))] if parameter in self._masters else []

    def shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        return tuple(parameter.shape)


class _Stage12:
    """Each rank has a part of each group's flat masters; `_hp_mapping` says where a parameter lies in it."""

    replicated = False

    def __init__(self, optimizer: Any) -> None:
        from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

        self._state = optimizer.optimizer.state
        # The same by two names: BF16_Optimizer is stage 1 with gradients accumulated in fp32.
        apart = isinstance(optimizer, BF16_Optimizer)
        self._flat = optimizer.fp32_groups_flat_partition if apart else optimizer.single_partition_of_fp32_groups

    def read(self, parameter: nn.Parameter, key: str | None = None) -> Part | None:
        mapping: Any = _attribute(parameter, "_hp_mapping")
        if mapping is None:
            return None
        flat = self._flat[mapping.param_group_index]
        source = flat if key is None else self._state[flat][key]
        address = mapping.hp_fragment_address
        return mapping.lp_fragment_address.start, source.detach().narrow(0, address.start, address.numel)

    def write(self, parameter: nn.Parameter, part: Tensor, key: str | None = None) -> None:
        place = self.read(parameter, key)
        assert place is not None
        place[1].copy_(part)

    def moments(self, parameter: nn.Parameter) -> list[str]:
        flat = self._flat[_attribute(parameter, "_hp_mapping").param_group_index]
        return _alike(self._state.get(flat, {}), flat.shape)

    def forward_copies(self, parameter: nn.Parameter) -> list[Part]:
        # Every rank has the whole of it.
        return [(0, parameter.detach().view(-1))]

    def shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        return tuple(parameter.shape)


class _Stage3:
    """Each rank has the part of each parameter that `ds_tensor` is the forward copy of; the last parts are padded."""

    replicated = False

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def read(self, parameter: nn.Parameter, key: str | None = None) -> Part | None:
        start, count = _own_range(parameter)
        return (start, self._padded(parameter, key).detach()[:count]) if count else None

    def write(self, parameter: nn.Parameter, part: Tensor, key: str | None = None) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        padded = self._padded(parameter, key).detach().clone()
        padded[: len(part)] = part
        if key is None:
            safe_set_local_fp32_param(parameter, padded)
        else:
            safe_set_local_optimizer_state(parameter, padded, key)

    def moments(self, parameter: nn.Parameter) -> list[str]:
        group = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)][0]
        flat = self._optimizer.fp32_partitioned_groups_flat[group]
        return _alike(self._optimizer.optimizer.state.get(flat, {}), flat.shape)

    def forward_copies(self, parameter: nn.Parameter) -> list[Part]:
        start, count = _own_range(parameter)
        copies = [(start, _attribute(parameter, "ds_tensor").detach()[:count])] if count else []
        if parameter.numel() == _attribute(parameter, "ds_numel"):
            # A small one stays gathered between steps.
            copies.append((0, parameter.detach().view(-1)))
        return copies

    def shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        # Between its uses the parameter itself is empty.
        return tuple(_attribute(parameter, "ds_shape"))

    def _padded(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        found: Tensor = (
            safe_get_local_fp32_param(parameter) if key is None else safe_get_local_optimizer_state(parameter, key)
        )
        return found


def _own_range(parameter: nn.Parameter) -> tuple[int, int]:
    """Where this rank's part of a stage 3 parameter begins, and how many weights it has without padding."""
    size = _attribute(parameter, "partition_numel")()
    start = size * _attribute(parameter, "ds_zero_partition_rank")
    return start, max(0, min(size, _attribute(parameter, "ds_numel") - start))


def _share(count: int, rank: int, world: int) -> tuple[int, int]:
    return count * rank // world, count * (rank + 1) // world


def _alike(state: Any, shape: torch.Size) -> list[str]:
    return [key for key, value in state.items() if isinstance(value, Tensor) and value.dim() and value.shape == shape]


def _attribute(parameter: nn.Parameter, name: str) -> Any:
    """What DeepSpeed has put on a parameter, which torch's types do not know."""
    return getattr(parameter, name)
