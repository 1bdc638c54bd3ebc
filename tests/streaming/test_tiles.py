"""Tiles: every place in one of them, the index that was put in, and bytes counted by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stored_weights import densities, fewest_bytes, random_mask, seeds, shapes, small_tiles

from sparseflow.hardware.streaming import tiles
from sparseflow.hardware.streaming.tiles import Tile


@given(shapes, densities, seeds, st.sampled_from([2, 4]))
def test_bytes_are_those_of_the_smaller_form(
    shape: tuple[int, ...], density: float, seed: int, value_bytes: int
) -> None:
    mask = random_mask(shape, density, seed)
    with small_tiles(12, 40):
        found = tiles.tiling(shape, tiles.count(mask))
    assert sum(tile.wire_bytes(value_bytes) for tile in found) == fewest_bytes(mask, value_bytes, 12, 40)


@given(shapes, densities, seeds)
def test_what_is_encoded_is_decoded(shape: tuple[int, ...], density: float, seed: int) -> None:
    mask = random_mask(shape, density, seed)
    flat = mask.reshape(-1).numpy()
    with small_tiles():
        found = tiles.tiling(shape, tiles.count(mask))
    for tile in found:
        part = flat[tile.place : tile.place + tile.places]
        index = np.frombuffer(tiles.encode(tile, part), np.uint8)
        assert index.nbytes == tile.index_bytes
        kept = tiles.places(tile, index)
        assert np.flatnonzero(part).tolist() == (list(range(tile.places)) if kept is None else kept.tolist())
        # As the wire has it, whatever form the store chose.
        pointers, columns = tiles.csr_index(tile, index)
        assert pointers.tolist() == [0, *part.reshape(tile.rows, tile.columns).sum(1).cumsum()]
        assert tiles.csr_places(tile, pointers, columns).tolist() == np.flatnonzero(part).tolist()


@given(shapes, densities, seeds)
def test_tiles_follow_one_another_in_places_and_in_values(shape: tuple[int, ...], density: float, seed: int) -> None:
    mask = random_mask(shape, density, seed)
    with small_tiles():
        found = tiles.tiling(shape, tiles.count(mask), offset=8)
    place = value = 0
    offset = 8
    for tile in found:
        assert (tile.place, tile.value, tile.offset) == (place, value, offset)
        place, value, offset = place + tile.places, value + tile.nnz, offset + tile.index_bytes
    assert (place, value) == (mask.numel(), int(mask.sum()))


def test_a_little_index() -> None:
    mask = np.array([[0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]], bool)
    tile = Tile(rows=3, columns=5, nnz=3, place=0, value=0, offset=0)
    pointers, columns = b"\0\0\0\0\1\0\0\0\1\0\0\0\3\0\0\0", b"\1\0\0\0\4\0"
    assert tiles.encode(tile, mask.reshape(-1)) == pointers + columns + b"\0\0"


def test_a_little_index_of_bits() -> None:
    mask = np.array([[1, 1, 1], [1, 0, 1]], bool)
    tile = Tile(rows=2, columns=3, nnz=5, place=0, value=0, offset=0)
    assert tiles.encode(tile, mask.reshape(-1)) == bytes([0b101111, 0, 0, 0])


def test_columns_that_sixteen_bits_cannot_name_are_split() -> None:
    assert tiles.boxes((2, 65_536 + 3)) == [(1, 65_536), (1, 3)] * 2
    assert tiles.boxes((100_000,)) == [(1, 65_536), (1, 34_464)]
    assert tiles.boxes((40, 65_536)) == [(16, 65_536), (16, 65_536), (8, 65_536)]
    mask = torch.zeros(1, 65_536, dtype=torch.bool)
    mask[0, -1] = True
    (tile,) = tiles.tiling((1, 65_536), tiles.count(mask))
    kept = tiles.places(tile, np.frombuffer(tiles.encode(tile, mask.view(-1).numpy()), np.uint8))
    assert kept is not None and kept.tolist() == [65_535]


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (3, 4, 2, 2), (0, 4), (4, 0)])
def test_a_weight_is_a_matrix(shape: tuple[int, ...]) -> None:
    rows, columns = tiles.matrix_shape(shape)
    assert rows * columns == math.prod(shape)
    assert rows == (shape[0] if len(shape) > 1 else 1)
