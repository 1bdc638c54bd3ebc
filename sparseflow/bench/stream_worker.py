"""A process that trains a model larger than the private memory it may have, and counts what that takes.

Its weights and AdamW's state are `TIMES` the limit that is put on private memory (RLIMIT_DATA) once everything is
imported. It prints a `Count` as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sparseflow.hardware.streaming.model import stream, stream_of

TIMES = 4
_WIDTH, _BATCH, _STEPS = 1024, 64, 2
# Of a weight and AdamW's two moments.
_STATE = 12


@dataclass(frozen=True)
class Count:
    """Bytes. state: of weights and optimizer, were they dense. imported: anonymous memory before there was a model.

    anonymous: at the most, beyond that. needed: by what backward saves, two buffers and one gradient. read, written: of
    a step, by the store's count.
    """

    limit: int
    state: int
    nnz: int
    imported: int
    anonymous: int
    needed: int
    read: int
    written: int
    seconds: float

    @property
    def whole(self) -> int:
        """Anonymous memory of the process at the most."""
        return self.imported + self.anonymous


def main() -> None:
    """Of a process of its own: its arguments are FOLDER, DENSITY and LIMIT."""
    torch.set_num_threads(1)
    print(json.dumps(asdict(train(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))))


def train(folder: Path, density: float, limit: int) -> Count:
    """A few steps of an MLP that is made on the spot, one layer at a time."""
    _step_of_something_small()
    layers = -(-TIMES * limit // (_STATE * _WIDTH**2))
    imported = _status("RssAnon")
    resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + limit, resource.RLIM_INFINITY))
    with torch.device("meta"):
        made = nn.Sequential(
            *(part for _ in range(layers) for part in (nn.Linear(_WIDTH, _WIDTH, bias=False), nn.ReLU()))
        )
    names = [name for name, _ in made.named_parameters()]
    masks = _Random(names, (_WIDTH, _WIDTH), density) if density < 1 else None
    model, optimizer = stream(made, torch.optim.AdamW(made.parameters(), lr=1e-6), folder, masks)
    found = stream_of(model)
    assert found is not None
    x = torch.randn(_BATCH, _WIDTH)
    store, before, seconds = found.store, (0, 0), 0.0
    with _Peak() as peak:
        for number in range(1 + _STEPS):
            if number == 1:
                before, seconds = (store.traffic.read, store.traffic.written), time.perf_counter()
            model(x).square().mean().backward()
            optimizer.step()
    seconds = (time.perf_counter() - seconds) / _STEPS
    # Each layer's input and each ReLU's output are the same tensor.
    saved, one = layers * x.nbytes, 4 * _WIDTH**2
    return Count(
        limit=limit,
        state=layers * _STATE * _WIDTH**2,
        nnz=sum(map(store.nnz, names)),
        imported=imported,
        anonymous=peak.bytes - imported,
        needed=saved + found.buffers.nbytes + one,
        read=(store.traffic.read - before[0]) // _STEPS,
        written=(store.traffic.written - before[1]) // _STEPS,
        seconds=seconds,
    )


def _step_of_something_small() -> None:
    # It imports what a step needs, torch's compiler among it, starts autograd's thread, and is gone.
    made = nn.Linear(4, 4)
    model, optimizer = stream(made, torch.optim.AdamW(made.parameters()), None)
    model(torch.randn(2, 4)).sum().backward()
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
