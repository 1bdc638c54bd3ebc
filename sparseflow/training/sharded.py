"""FSDP2: parameters, gradients and optimizer state cut into as many shards as there are ranks.

Zhao et al., 2023 (arXiv:2304.11277), as `torch.distributed.fsdp.fully_shard` has it. The values of sparse layers are
short, so that their shards are. What is trained is a copy: the model that was given stays as it is, dense names, masks
and all, and gets the weights whenever they are asked for. So every rank keeps one more set of (short) values.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sparseflow.hardware.optimizers import mixes_elements
from sparseflow.ranks import Ranks
from sparseflow.training.engines import MakeOptimizer, clear_gradients
from sparseflow.training.progress import optimizer_state, restore_optimizer


class Sharded:
    """See the module. `ValueError` for fp16, whose loss scale the ranks would set apart, and for Muon."""

    def __init__(self, model: nn.Module, make_optimizer: MakeOptimizer, accelerator: Accelerator, ranks: Ranks) -> None:
        if accelerator.scaler is not None:
            raise ValueError("fsdp2 does not train in fp16, for each rank would scale its own loss; use bf16, or ddp")
        self._model, self._accelerator = model, accelerator
        self._mesh = init_device_mesh(accelerator.device.type, (ranks.world,))
        # It warns of models that return a view, for somebody might add to it in place; no loss does.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self.module = copy.deepcopy(model)
        for block in _blocks(self.module):
            fully_shard(block, mesh=self._mesh)
        fully_shard(self.module, mesh=self._mesh)
        self.optimizer = make_optimizer(self.module)
        if mixes_elements(self.optimizer):
            name = type(self.optimizer).__name__
            raise ValueError(f"{name} combines elements of a weight, of which fsdp2 cuts shards; train with it on ddp")

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        cast(FSDPModule, self.module).set_requires_gradient_sync(last)
        with self._accelerator.autocast():
            yield

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, clip: float | None) -> None:
        if clip is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), clip)
        self.optimizer.step()
        clear_gradients(self.optimizer)

    def remask(self, masks: Mapping[str, Tensor]) -> None:
        raise ValueError("fsdp2 trains with masks that stay; train with masks that change on ddp")

    def gather(self) -> None:
        with torch.no_grad():
            for whole, shard in self._pairs():
                whole.copy_(_whole(shard))
            for mine, theirs in zip(self._model.buffers(), self.module.buffers(), strict=True):
                mine.copy_(theirs)

    def scatter(self, optimizer: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for whole, shard in self._pairs():
                shard.copy_(self._shard_like(whole, shard))
            for mine, theirs in zip(self._model.buffers(), self.module.buffers(), strict=True):
                theirs.copy_(mine)
        whole_state = _Holder(self.optimizer.param_groups, self._pairs())
        restore_optimizer(self._model, whole_state, optimizer)
        for whole, shard in self._pairs():
            state = whole_state.state.get(whole, {})
            self.optimizer.state[shard] = {
                key: self._shard_like(value, shard) if isinstance(value, Tensor) and value.dim() else value
                for key, value in state.items()
            }

    def optimizer_state(self) -> dict[str, Tensor]:
        states: dict[Tensor, dict[str, Any]] = {}
        for whole, shard in self._pairs():
            states[whole] = {key: _whole(value) for key, value in self.optimizer.state.get(shard, {}).items()}
        return optimizer_state(self._model, states)

    def release(self) -> None:
        self.gather()
        self._accelerator.free_memory()

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        return zip(self._model.parameters(), self.module.parameters(), strict=True)

    def _shard_like(self, whole: Tensor, shard: nn.Parameter) -> Tensor:
        assert isinstance(shard, DTensor)
        return distribute_tensor(whole.detach(), self._mesh, shard.placements)


class _Holder:
    """As much of an optimizer as `restore_optimizer` fills: its groups, over whole parameters, and its state."""

    def __init__(self, groups: list[dict[str, Any]], pairs: Iterator[tuple[nn.Parameter, nn.Parameter]]) -> None:
        wholes = {id(shard): whole for whole, shard in pairs}
        self.param_groups = [{**group, "params": [wholes[id(shard)] for shard in group["params"]]} for group in groups]
        self.state: dict[Tensor, dict[str, Any]] = {}


def _blocks(model: nn.Module) -> list[nn.Module]:
    """What is gathered as one: the elements of module lists, such as a transformer's blocks. The rest is the root's."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [block for blocks in lists for block in blocks if any(True for _ in block.parameters())]


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value
