"""What a step allocates, tensor by tensor: activations and a gradient beside the two buffers, and no other weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from streaming_setup import SGD, streamed
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparseflow.hardware.streaming import store_parameter

LAYERS, WIDTH, BATCH = 8, 128, 4
WEIGHT = 4 * WIDTH**2


class Allocated(TorchDispatchMode):
    """`peak`: bytes that were there at once of what torch's operations made, but for views of what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._there: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and not leaf.is_meta and _address(leaf) not in given:
                storage = leaf.untyped_storage()
                self._there[_address(leaf)] = StorageWeakRef(storage), storage.nbytes()
        self._there = {address: one for address, one in self._there.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(nbytes for _, nbytes in self._there.values()))
        return found


def _address(tensor: Tensor) -> int:
    return 0 if tensor.is_meta else tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("density", [0.3, 1.0])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_step_allocates_activations_and_a_gradient(
    density: float, in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_parameter, "CHUNK", 256)
    layers = (layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU()))
    plain = nn.Sequential(*layers)
    draw = torch.Generator().manual_seed(0)
    names = [name for name, _ in plain.named_parameters()]
    masks = {name: torch.rand(WIDTH, WIDTH, generator=draw) < density for name in names}
    model, optimizer, stream = streamed(plain, None if in_memory else tmp_path, masks=masks, optimizer=SGD)
    x = torch.randn(BATCH, WIDTH)
    # A ReLU keeps its output, which is the next layer's input; before it comes the product, and in backward dy and dx.
    activations = (LAYERS + 4) * x.nbytes
    for number in range(2):
        with Allocated() as found:
            model(x).square().mean().backward()
            optimizer.step()
        # The dense gradient, then the kept ones of it.
        assert WEIGHT <= found.peak <= activations + 2 * WEIGHT < LAYERS * WEIGHT, number
    assert stream.buffers.nbytes == 2 * WEIGHT
