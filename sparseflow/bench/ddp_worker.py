"""One of two processes that time a step through Trainer and a bare one of torch's DDP, in turn.

python -m torch.distributed.run --nproc_per_node 2 -m sparseflow.bench.ddp_worker NETWORK OUT.json
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparseflow.bench.clock import REPEATS
from sparseflow.data import Data, TensorSplit
from sparseflow.models import lenet_300_100
from sparseflow.ranks import current
from sparseflow.training.trainer import Trainer

# Network → what builds it, its inputs, the batch of both processes, and the steps of a sample.
_NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int, int]] = {
    "lenet": (lenet_300_100, 784, 120, 100),
    "mlp": (lambda: nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4))), 1024, 256, 10),
}


def main(network: str, out: Path) -> None:
    """Writes the seconds of each sample, on rank 0."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    build, inputs, batch, steps = _NETWORKS[network]
    split = TensorSplit(torch.rand(40 * batch, inputs), torch.randint(0, 10, (40 * batch,)))
    make = functools.partial(torch.optim.Adam, lr=1e-4, fused=True)
    last = 10**9
    task = Data("random", "classification", split, split, split, 10, (inputs,))
    trainer = Trainer(build, task, optimizer=make, steps=last, batch_size=batch, evaluate_every=last)
    sides = {"bare": _bare(build(), split, make, batch // 2), "ours": trainer.stepper(trainer.model)}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    number = 0
    for repeat in range(REPEATS + 1):
        for side, step in sides.items():
            current().barrier()
            begin = time.perf_counter()
            for _ in range(steps):
                step(number)
                number += 1
            # The first of each is the warm-up.
            seconds[side] += [(time.perf_counter() - begin) / steps] if repeat else []
    if current().main:
        out.write_text(json.dumps(seconds))
    dist.destroy_process_group()


def _bare(
    model: nn.Module, split: TensorSplit, make: Callable[..., torch.optim.Optimizer], batch: int
) -> Callable[[int], None]:
    wrapped = DistributedDataParallel(model)
    optimizer = make(model.parameters())
    permutation = torch.randperm(len(split))

    def step(number: int) -> None:
        start = number * batch % (len(split) - batch)
        indices = permutation[start : start + batch]
        loss = F.cross_entropy(wrapped(split.inputs[indices]), split.targets[indices])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return step


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
