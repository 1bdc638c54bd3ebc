"""A process that trains a model larger than the memory it may have, and counts what that takes.

Its weights and AdamW's state are `TIMES` the limit that it gets once everything is imported: in a memory cgroup if it
is given one, else by RLIMIT_DATA, which limits private memory alone. Then it drops each layer from the disk's cache
once it has been used, so that what it reads and writes can be counted. It prints a `Count` as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor, nn

from sparseflow.bench.mapped_torch import MappedTraining
from sparseflow.bench.memory_cgroup import join
from sparseflow.hardware.streaming.execution import Stream
from sparseflow.hardware.streaming.model import stream, stream_of

TIMES = 4
_WIDTH = 1024
# Of a weight and AdamW's two moments.
_STATE = 12
_RATE = 1e-6

Side = Literal["stream", "mapped"]


@dataclass(frozen=True)
class Job:
    """side: sf.stream, or plain torch with mapped files. cgroup: a folder; "" for RLIMIT_DATA. steps: timed ones."""

    side: Side
    folder: str
    density: float
    limit: int
    cgroup: str
    batch: int = 64
    steps: int = 2


@dataclass(frozen=True)
class Count:
    """Bytes. state: of weights and optimizer, were they dense. imported: anonymous memory before there was a model.

    anonymous: at the most, beyond that. needed: by what backward saves, two buffers and one gradient. read, written: of
    a step, by the store's count; from_disk, to_disk: by the system's. seconds: of each step.
    """

    limit: int
    state: int
    nnz: int
    imported: int
    anonymous: int
    needed: int
    read: int
    written: int
    from_disk: int
    to_disk: int
    seconds: tuple[float, ...]
    # What the limit was put on with; whoever made the process knows.
    under: str = ""

    @property
    def whole(self) -> int:
        """Anonymous memory of the process at the most."""
        return self.imported + self.anonymous


def main() -> None:
    """Of a process of its own: its argument is a `Job` as JSON."""
    torch.set_num_threads(1)
    print(json.dumps(asdict(train(Job(**json.loads(sys.argv[1]))))))


def train(job: Job) -> Count:
    """A few steps of an MLP that is made on the spot, one layer at a time."""
    _step_of_something_small()
    imported = _status("RssAnon")
    if job.cgroup:
        join(Path(job.cgroup))
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + job.limit, resource.RLIM_INFINITY))
    layers = -(-TIMES * job.limit // (_STATE * _WIDTH**2))
    with torch.device("meta"):
        model = nn.Sequential(
            *(part for _ in range(layers) for part in (nn.Linear(_WIDTH, _WIDTH, bias=False), nn.ReLU()))
        )
    made = _Streamed(model, job) if job.side == "stream" else _Mapped(model, job)
    if not job.cgroup:
        _forget_between_layers(model, made.forget)
    x = torch.randn(job.batch, _WIDTH)
    with _Peak() as peak:
        made.step(x)
        before, seconds = _moved(made), []
        for _ in range(job.steps):
            start = time.perf_counter()
            made.step(x)
            seconds.append(time.perf_counter() - start)
        moved = [(after - first) // job.steps for first, after in zip(before, _moved(made), strict=True)]
    # Each layer's input and each ReLU's output are the same tensor.
    saved, one = layers * x.nbytes, 4 * _WIDTH**2
    return Count(
        limit=job.limit,
        state=layers * _STATE * _WIDTH**2,
        nnz=made.nnz,
        imported=imported,
        anonymous=peak.bytes - imported,
        needed=saved + made.buffers + one,
        read=moved[0],
        written=moved[1],
        from_disk=moved[2],
        to_disk=moved[3],
        seconds=tuple(seconds),
    )


def _initialise(module: nn.Module, density: float = 1.0) -> None:
    # So that activations and gradients are as large in the last layer as in the first: where their squares are
    # subnormal, all that is measured is how slowly a processor computes with those.
    assert isinstance(module, nn.Linear)
    nn.init.kaiming_uniform_(module.weight, nonlinearity="relu").div_(density**0.5)


class _Streamed:
    """The model on sf.stream."""

    def __init__(self, model: nn.Module, job: Job) -> None:
        names = [name for name, _ in model.named_parameters()]
        masks = _Random(names, (_WIDTH, _WIDTH), job.density) if job.density < 1 else None
        optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
        initialise = partial(_initialise, density=job.density)
        folder = Path(job.folder) / "store"
        self._model, self._optimizer = stream(model, optimizer, folder, masks, initialise=initialise)
        found = stream_of(self._model)
        assert found is not None
        self._stream: Stream = found
        self.nnz, self.buffers = sum(map(found.store.nnz, names)), found.buffers.nbytes
        self._names = {module: f"{path}.weight" for path, module in model.named_modules()}

    def step(self, x: Tensor) -> None:
        self._model(x).square().mean().backward()
        self._optimizer.step()

    def moved(self) -> tuple[int, int]:
        return self._stream.store.traffic.read, self._stream.store.traffic.written

    def forget(self, module: nn.Module) -> None:
        self._stream.store.parameter(self._names[module]).pages.sync()
        self._stream.store.forget([self._names[module]])


class _Mapped:
    """The model in plain torch. It has no buffers, and what it reads and writes is known to the system alone."""

    buffers = 0

    def __init__(self, model: nn.Module, job: Job) -> None:
        self._training = MappedTraining(model, Path(job.folder) / "mapped", _RATE, _initialise)
        self.nnz = sum(parameter.numel() for parameter in model.parameters())

    def step(self, x: Tensor) -> None:
        self._training.step(x)

    def moved(self) -> tuple[int, int]:
        return 0, 0

    def forget(self, module: nn.Module) -> None:
        self._training.forget(module)


def _moved(made: _Streamed | _Mapped) -> Sequence[int]:
    counted = psutil.Process().io_counters()
    return (*made.moved(), counted.read_bytes, counted.write_bytes)


def _forget_between_layers(model: nn.Module, forget: Callable[[nn.Module], None]) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, *_: forget(module))
            module.register_full_backward_hook(lambda module, *_: forget(module))


def _step_of_something_small() -> None:
    # It imports what a step needs, torch's compiler among it, starts autograd's thread, and is gone.
    for fused in (False, True):
        made = nn.Linear(4, 4)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(made.parameters(), fused=fused)
        if not fused:
            made_too, optimizer = stream(made, optimizer, None)
            made_too(torch.randn(2, 4)).sum().backward()
        else:
            made(torch.randn(2, 4)).sum().backward()
        optimizer.step()


class _Random(Mapping[str, Tensor]):
    """A mask of each layer, drawn when it is asked for, so that no two are in memory."""

    def __init__(self, names: list[str], shape: tuple[int, int], density: float) -> None:
        self._names, self._shape, self._density = names, shape, density

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        draw = torch.Generator().manual_seed(self._names.index(name))
        return torch.rand(self._shape, generator=draw) < self._density

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Peak:
    """Looks every millisecond at how much anonymous memory the process has; `bytes` is the most that it saw."""

    def __init__(self) -> None:
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.001):
            self.bytes = max(self.bytes, _status("RssAnon"))


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"expected a Linux that counts {key} of a process")
