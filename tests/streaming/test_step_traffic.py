"""The bytes that a step moves, by the store's count and by the system's."""

from __future__ import annotations

from pathlib import Path

import torch
from stored_weights import fewest_bytes, made, random_mask

from sparseflow.hardware.streaming import tiles
from sparseflow.hardware.streaming.step_traffic import BOUND, step_traffic
from sparseflow.hardware.streaming.updates import Adam

RULE = Adam(lr=0.001, weight_decay=0.01, decoupled=True)


def test_a_step_moves_little_more_than_it_must(tmp_path: Path) -> None:
    weights = {f"{number}.weight": torch.randn(500, 600) for number in range(3)}
    masks = {name: random_mask((500, 600), 0.1, seed) for seed, name in enumerate(weights)}
    with made(tmp_path / "store", weights, masks) as store:
        nnz = sum(map(store.nnz, store.names))
        # The first after a commit writes to the other slot, the second in place.
        for _ in range(2):
            found = step_traffic(store, RULE)
            assert found.nnz == nnz
            assert found.written == 12 * nnz
            index = sum(fewest_bytes(mask, 4, tiles.COLUMNS, tiles.PLACES) for mask in masks.values()) - 4 * nnz
            # Values twice and index thrice, for the gradient is taken at the kept weights; then the optimizer.
            assert found.read == 8 * nnz + 3 * (index + index % 4) + 12 * nnz
            assert found.read + found.written <= 1.2 * BOUND * nnz
            if found.from_disk is not None and found.to_disk is not None:
                assert found.from_disk + found.to_disk <= 1.2 * BOUND * nnz
            store.commit()


def test_a_sparse_step_moves_a_fraction_of_a_dense_one() -> None:
    shape = (500, 600)
    sparse = made(None, {"w": torch.randn(shape)}, {"w": random_mask(shape, 0.1, seed=0)})
    dense = made(None, {"w": torch.randn(shape)}, {})
    few, all_of_them = step_traffic(sparse, RULE), step_traffic(dense, RULE)
    assert all_of_them.read + all_of_them.written == (8 + 12 + 12) * 500 * 600
    assert few.read + few.written <= 0.15 * (all_of_them.read + all_of_them.written)
