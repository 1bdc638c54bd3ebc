from __future__ import annotations

from collections.abc import Iterator

import fused_backend
import pytest
import torch

from sparseflow.hardware import backends


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[bool, bool, bool]]]:
    """Only `dense`, `dense-compact` and the torch-only `fused` are there; gives the list of the latter's forwards."""
    ours = {name: home for name, home in backends._OURS.items() if name.startswith("dense")}
    monkeypatch.setattr(backends, "_OURS", {**ours, "fused": "fused_backend:Fused"})
    backends.get.cache_clear()
    fused_backend.calls.clear()
    yield fused_backend.calls
    backends.get.cache_clear()
