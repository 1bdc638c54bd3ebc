"""Weights, masks and stores that tests draw from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from sparseflow.hardware.streaming import tiles
from sparseflow.hardware.streaming.store import Entry, Store

ADAM = ("exp_avg", "exp_avg_sq")

# Vectors, matrices and convolutions, empty ones too; with `small_tiles`, most have several tiles.
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
densities = st.sampled_from([0.0, 0.02, 0.3, 0.45, 0.55, 0.7, 0.95, 1.0])
seeds = st.integers(0, 2**31)


@contextmanager
def small_tiles(columns: int = 12, places: int = 40) -> Iterator[None]:
    """Tiles of so few columns and places, so that a little weight has many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "COLUMNS", columns)
        patch.setattr(tiles, "PLACES", places)
        yield


def random_mask(shape: tuple[int, ...], density: float, seed: int) -> Tensor:
    """Of about that density, with rows that are fuller than others."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < density
    if mask.dim() > 1 and len(mask) and 0 < density < 1:
        mask[0] = True
    return mask


def made(
    folder: Path | None, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], keys: tuple[str, ...] = ADAM
) -> Store:
    """A store of these weights, those without a mask whole."""
    return Store.create(folder, [Entry(n, tuple(w.shape), masks.get(n), w, keys) for n, w in weights.items()])


def contents(store: Store) -> dict[str, object]:
    """All that a store holds, to compare."""
    sections = {
        name: [store.read(name), store.mask(name), *(store.state(name, key).clone() for key in store.keys(name))]
        for name in store.names
    }
    return {
        "step": store.step,
        "steps": {name: store.steps(name) for name in store.names},
        "digest": store.digest,
        "sections": {name: [tensor.tolist() for tensor in tensors] for name, tensors in sections.items()},
    }


def fewest_bytes(mask: Tensor, value_bytes: int, columns: int, places: int) -> int:
    """Σ over tiles of min(CSR, dense), of the mask alone."""
    matrix = mask.reshape(1, -1) if mask.dim() < 2 else mask.reshape(len(mask), math.prod(mask.shape[1:]))
    if not matrix.numel():
        return 0
    height = max(1, places // matrix.shape[1]) if matrix.shape[1] <= columns else 1
    total = 0
    for band in matrix.split(height):
        for tile in band.split(columns, dim=1):
            csr = int(tile.sum()) * (value_bytes + 2) + 4 * (len(tile) + 1)
            total += min(csr, tile.numel() * value_bytes)
    return total
