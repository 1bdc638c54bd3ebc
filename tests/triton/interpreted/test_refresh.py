"""Packed copies of values: every dtype, any number of orientations."""

from __future__ import annotations

import pytest
import torch

from sparseflow.testing.placement import bordered
from sparseflow_kernels.triton_pack import BLOCK, refresh

SOURCES = [torch.tensor(places, dtype=torch.int32) for places in ([2, -1, 0], [], [1] * (BLOCK + 1) + [0], [-1, 2])]


@pytest.mark.parametrize("count", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_slots_hold_their_values_and_padding_zero(count: int, dtype: torch.dtype) -> None:
    # Numbers that no dtype rounds.
    values = torch.tensor([1.5, -2.0, 0.25])
    packed = refresh(bordered(values), SOURCES[:count], dtype)
    for got, source in zip(packed, SOURCES[:count], strict=True):
        expected = torch.where(source < 0, 0.0, values[source.clamp(min=0).long()])
        assert torch.equal(got, expected.to(dtype))


def test_values_of_16_bits_may_be_packed_as_float32() -> None:
    (packed,) = refresh(torch.tensor([1.5, -2.0], dtype=torch.bfloat16), [torch.tensor([1, 0]).int()], torch.float32)
    assert torch.equal(packed, torch.tensor([-2.0, 1.5]))


def test_no_values_fill_padding_with_zero() -> None:
    (packed,) = refresh(torch.empty(0), [torch.tensor([-1, -1]).int()], torch.float32)
    assert torch.equal(packed, torch.zeros(2))


def test_values_that_are_not_flat_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got shape \(2, 2\)"):
        refresh(torch.zeros(2, 2), SOURCES[:1], torch.float32)
    with pytest.raises(ValueError, match=r"contiguous values"):
        refresh(torch.zeros(6)[::2], SOURCES[:1], torch.float32)
