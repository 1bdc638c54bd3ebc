"""How the indices of an op follow a layer that moves."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

NOTHING_ON_META = "indices have no contents on the meta device; sparsify the model on a real one, or load it there"


def moved(tensors: dict[str, Tensor], fn: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Indices on the device, or in the shared memory, to which nn.Module's `fn` moves tensors; else as they were.

    `ValueError` from the meta device to another.
    """
    return {key: _moved(tensor, fn) for key, tensor in tensors.items()}


def _moved(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    # fn may cast, or hand out uninitialised memory as to_empty does, so that it never gets the indices themselves.
    example = fn(tensor.new_empty(0))
    if tensor.is_meta and not example.is_meta:
        raise ValueError(f"nothing to move: {NOTHING_ON_META}")
    there = tensor.to(example.device)
    if example.is_shared():  # type: ignore[no-untyped-call]
        there.share_memory_()  # type: ignore[no-untyped-call]
    return there
