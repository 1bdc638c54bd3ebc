"""One seed, many streams: a stream's seed is a pure function of the run's seed and of what it is for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import nn


def derive(seed: int, *labels: object) -> int:
    """A seed in [0, 2**63) for the stream that the labels name, e.g. derive(1, "order", epoch)."""
    text = "/".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def build_seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The model that `build` initialises from torch's global RNG, seeded; the RNG is put back."""
    with torch.random.fork_rng(devices=_devices()):
        torch.manual_seed(seed)
        return build()


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
