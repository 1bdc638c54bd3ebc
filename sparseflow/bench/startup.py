"""What the first use of a backend costs: its imports, and its kernels compiled for one model."""

from __future__ import annotations

from sparseflow.bench.clock import REPEATS, fresh_process
from sparseflow.bench.figure import Figure

# torch has run the dense network before the clock starts; then the same model is made sparse and run twice, and what
# the first time takes above the second is imports and compilation.
_CODE = """
import sys, time
import torch
from torch import nn

backend = sys.argv[1]
torch.set_num_threads(2)
torch.manual_seed(0)
x = torch.randn(128, 1024)
models = [nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4))) for _ in range(3)]
masks = {f"{i}.weight": torch.rand(1024, 1024) < 0.1 for i in range(4)}

def run(model):
    model(x).sum().backward()

def seconds(model):
    start = time.perf_counter()
    from sparseflow.hardware.plan import plan, sparsify
    run(sparsify(model, masks, plan=plan(model, masks, x, backend)))
    return time.perf_counter() - start

run(models[0])
print(seconds(models[1]) - seconds(models[2]))
"""


def startup(backend: str, repeats: int = REPEATS) -> Figure:
    """Seconds to import the backend and to compile all kernels of an MLP 1024×4, above `import torch`."""
    samples = tuple(float(fresh_process(_CODE, backend)) for _ in range(repeats))
    return Figure("import and compile all kernels of MLP 1024×4", "s", 0.5, False, samples)
