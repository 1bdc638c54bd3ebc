"""Import, training loop, dense backend and pruning: what every backend stands on."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseflow.bench.clock import REPEATS, process_seconds, ratios, take_turns, threads
from sparseflow.bench.figure import Figure
from sparseflow.bench.pruning import prune_globally
from sparseflow.data import Data, TensorSplit
from sparseflow.hardware.plan import sparsify
from sparseflow.models import lenet_300_100
from sparseflow.training.trainer import Trainer

_PRUNED = 20_000_000


def foundation() -> list[Figure]:
    """The figures of this file."""
    return [
        import_time(),
        trainer_overhead(),
        sparse_linear_on_dense(),
        *prune_globally("tensors", _PRUNED, faster=10, peak=5),
    ]


def import_time() -> Figure:
    """Seconds of `import sparseflow` above those of `import torch`, each in a fresh process."""
    torch_only, both = "import torch", "import torch, sparseflow"
    process_seconds(both)
    pairs = [(process_seconds(torch_only), process_seconds(both)) for _ in range(REPEATS)]
    return Figure("import sparseflow, above import torch", "s", 0.3, False, tuple(b - a for a, b in pairs))


def trainer_overhead(steps: int = 200) -> Figure:
    """Milliseconds that a LeNet-300-100 step of 60 through Trainer costs above a bare torch loop, one thread."""
    generator = torch.Generator().manual_seed(0)
    split = TensorSplit(torch.rand(6000, 784, generator=generator), torch.randint(0, 10, (6000,), generator=generator))
    task = Data("random", "classification", split, split, split, 10, (784,))
    make = functools.partial(torch.optim.Adam, lr=1.2e-3, fused=True)
    last = 10**9
    trainer = Trainer(lenet_300_100, task, optimizer=make, steps=last, batch_size=60, evaluate_every=last)
    ours = trainer.stepper(trainer.model)
    model = lenet_300_100()
    optimizer = make(model.parameters())
    permutation = torch.randperm(6000, generator=generator)

    def bare(step: int) -> None:
        indices = permutation[step % 100 * 60 : step % 100 * 60 + 60]
        loss = F.cross_entropy(model(split.inputs[indices]), split.targets[indices])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    with threads(1):
        sides = take_turns({"bare": _steps(bare, steps), "ours": _steps(ours, steps)})
    extra = tuple((a - b) * 1e3 / steps for a, b in zip(sides["ours"], sides["bare"]))
    return Figure("LeNet-300-100 b60 step: Trainer above a bare loop", "ms", 0.3, False, extra)


def sparse_linear_on_dense() -> Figure:
    """Time of SparseLinear on `dense` over nn.Linear, forward and backward, 1024×1024, 128 rows, half the weights."""
    name = "SparseLinear on dense / nn.Linear, 1024×1024 b128"
    dense = nn.Linear(1024, 1024)
    mask = torch.rand(1024, 1024) < 0.5
    with torch.no_grad():
        dense.weight.mul_(mask)
    sparse = sparsify(nn.Sequential(nn.Linear(1024, 1024)), {"0.weight": mask}, backend="dense")
    sparse.load_state_dict({f"0.{key}": tensor for key, tensor in dense.state_dict().items()})
    x = torch.randn(128, 1024, requires_grad=True)
    if not torch.allclose(sparse(x), dense(x), rtol=1e-4, atol=1e-5):
        return Figure(name, "x", 1.15, False, (), "outputs differ")
    sides = take_turns({"dense": lambda: _forward_backward(dense, x), "ours": lambda: _forward_backward(sparse, x)})
    return Figure(name, "x", 1.15, False, ratios(sides["ours"], sides["dense"]), seconds=sides)


def _forward_backward(module: nn.Module, x: Tensor) -> None:
    module.zero_grad()
    x.grad = None
    torch.autograd.backward(module(x).sum())


def _steps(step: Callable[[int], None], count: int) -> Callable[[], None]:
    def run() -> None:
        for number in range(count):
            step(number)

    return run
