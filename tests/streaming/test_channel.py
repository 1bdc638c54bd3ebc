"""What crosses the wire: the bytes of the smaller form, no pruned weight, and gradients of exactly nnz values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_weights import densities, fewest_bytes, made, random_mask, seeds, shapes, small_tiles

from sparseflow.hardware.streaming.channel import Channel, Message, Payload, check_payload, receive
from sparseflow.hardware.streaming.tiles import Tile


@given(shapes, densities, seeds, st.sampled_from([2, 4]))
@settings(deadline=None)
def test_weights_arrive_in_the_fewest_bytes(
    shape: tuple[int, ...], density: float, seed: int, value_bytes: int
) -> None:
    mask, weight = random_mask(shape, density, seed), torch.randn(shape)
    with small_tiles(12, 40):
        channel = Channel(made(None, {"w": weight}, {"w": mask}), value_bytes, strict=True)
        out = channel.send_weights("w", "forward", torch.full(shape, torch.nan))
    assert torch.equal(out, weight.where(mask, 0.0))
    assert channel.totals["w", "forward", "out"] == fewest_bytes(mask, value_bytes, 12, 40)


def test_a_parameter_without_a_mask_is_sent_dense() -> None:
    weight = torch.randn(3, 4)
    channel = Channel(made(None, {"w": weight}, {}), value_bytes=2, strict=True)
    assert torch.equal(channel.send_weights("w", "backward", torch.empty(3, 4)), weight)
    assert channel.messages == [Message("w", "backward", "out", 24)]


def test_gradients_are_exactly_the_kept_ones() -> None:
    mask = random_mask((6, 10), 0.3, seed=1)
    channel = Channel(made(None, {"w": torch.randn(6, 10)}, {"w": mask}), gradient_bytes=2)
    gradient = torch.randn(int(mask.sum()))
    assert channel.send_gradient("w", "backward", gradient) is gradient
    assert channel.totals["w", "backward", "back"] == 2 * int(mask.sum())
    with pytest.raises(AssertionError, match=r"w: \d+ weights are kept, the gradient has \(60,\)"):
        channel.send_gradient("w", "backward", torch.randn(60))


def test_messages_are_kept_in_order_until_the_step_ends() -> None:
    store = made(None, {"a": torch.ones(3), "b": torch.ones(2)}, {})
    channel = Channel(store)
    for name in ("a", "b"):
        channel.send_weights(name, "forward", torch.empty(store.shape(name)), systems=4)
    channel.send_gradient("b", "backward", torch.ones(2))
    sent = [Message("a", "forward", "out", 12, 4), Message("b", "forward", "out", 8, 4)]
    assert channel.end_step() == [*sent, Message("b", "backward", "back", 8)]
    assert channel.messages == []
    channel.send_weights("a", "forward", torch.empty(3))
    assert channel.messages == [Message("a", "forward", "out", 12)]
    assert channel.totals["a", "forward", "out"] == 24


def test_values_are_rounded_on_the_way() -> None:
    weight, mask = torch.randn(6, 10), random_mask((6, 10), 0.3, seed=1)
    store = made(None, {"w": weight}, {"w": mask})
    channel = Channel(store, value_bytes=2, rounded=lambda values: values.bfloat16().float())
    out = channel.send_weights("w", "forward", torch.empty(6, 10))
    assert torch.equal(out, weight.bfloat16().float().where(mask, 0.0))
    assert torch.equal(store.values("w"), weight[mask])


def test_strict_follows_a_new_mask() -> None:
    store = made(None, {"w": torch.ones(6, 10)}, {"w": random_mask((6, 10), 0.3, seed=1)})
    channel = Channel(store, strict=True)
    channel.send_weights("w", "forward", torch.empty(6, 10))
    store.remask("w", random_mask((6, 10), 0.3, seed=2))
    channel.send_weights("w", "forward", torch.empty(6, 10))


CSR = Payload(torch.tensor([1.0, 2.0]), 4, np.array([0, 1, 2], np.uint32), np.array([2, 0], np.uint16))
DENSE = Payload(torch.tensor([0.0, 0.0, 1.0, 2.0, 0.0, 0.0]), 4)
TILE = Tile(rows=2, columns=3, nnz=2, place=0, value=0, offset=0)
KEPT = torch.tensor([0, 0, 1, 1, 0, 0], dtype=torch.bool)


@pytest.mark.parametrize("payload", [CSR, DENSE])
def test_a_payload_as_it_should_be(payload: Payload) -> None:
    check_payload(TILE, payload, KEPT)
    out = torch.full((6,), torch.nan)
    receive(TILE, payload, out)
    assert out.tolist() == [0, 0, 1, 2, 0, 0]
    assert payload.nbytes == {id(CSR): 2 * 4 + 2 * 2 + 3 * 4, id(DENSE): 6 * 4}[id(payload)]


@pytest.mark.parametrize(
    "payload",
    [
        replace(CSR, columns=np.array([1, 0], np.uint16)),
        replace(CSR, pointers=np.array([0, 2, 2], np.uint32)),
        replace(CSR, pointers=np.array([0, 1, 1], np.uint32), columns=np.array([2], np.uint16), values=torch.ones(1)),
        replace(CSR, columns=np.array([2, 0, 1], np.uint16), pointers=np.array([0, 1, 3], np.uint32)),
        replace(CSR, values=torch.ones(3)),
        replace(DENSE, values=torch.tensor([0.0, 5.0, 1.0, 2.0, 0.0, 0.0])),
        replace(DENSE, values=torch.ones(5)),
    ],
)
def test_a_pruned_weight_is_noticed(payload: Payload) -> None:
    with pytest.raises(AssertionError, match=r"Tile\(.*: "):
        check_payload(TILE, payload, KEPT)
