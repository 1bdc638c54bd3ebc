"""What DDP and FSDP2 really reduce and shard: run as a script, it prints what each of two ranks found, as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import launch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import sparseflow as sf
from sparseflow.hardware.model import sparse_layers
from sparseflow.hardware.traffic import charge

WORLD = 2
BACKENDS = ("dense", "dense-compact", "cpu")
DENSITY = 0.1


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(129, 65), nn.ReLU(), nn.Linear(65, 33), nn.ReLU(), nn.Linear(33, 10))


def masks_of(model: nn.Module) -> sf.Masks:
    return sf.prune(model, density=DENSITY, allocation="uniform", param_filter=["0.*", "2.*"])


def on_wire(model: nn.Module) -> dict[str, int]:
    """Bytes of the gradients in DDP's buckets in one step: those of pruned layers, and all."""
    values = {id(layer.values) for layer in sparse_layers(model).values()}
    counted = {"pruned": 0, "all": 0}

    # DDP looks at the annotations, which must be no strings: no `from __future__ import annotations` here.
    def hook(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        counted["all"] += bucket.buffer().numel() * bucket.buffer().itemsize
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            if id(parameter) in values:
                counted["pruned"] += gradient.numel() * gradient.itemsize
        return allreduce_hook(group, bucket)

    wrapped = DistributedDataParallel(model)
    wrapped.register_comm_hook(None, hook)
    wrapped(torch.randn(4, 129)).sum().backward()
    return counted


def shard_bytes(model: nn.Module) -> int:
    """Bytes of the parameters that FSDP2 leaves on this rank."""
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    shards = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
    return sum(shard.to_local().numel() * shard.itemsize for shard in shards)


def work(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for backend in BACKENDS:
        dense = build()
        masks = masks_of(dense)
        plan = sf.plan(dense, masks, backend=backend)
        model = sf.sparsify(build(), masks, plan=plan)
        found[backend] = {
            "planned": charge(dense, plan, WORLD).to_json(),
            "built": charge(model, plan, WORLD).to_json(),
            "wire": on_wire(model),
            "shards": shard_bytes(sf.sparsify(build(), masks, plan=plan)),
        }
    return found


if __name__ == "__main__":
    print(json.dumps(launch(WORLD, Path(sys.argv[1]), work)))
