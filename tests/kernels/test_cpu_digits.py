import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow_kernels.cpu_digits import count_digits, mark_above

DIGITS = [(16, 16), (0, 16), (24, 8), (16, 8), (8, 8), (0, 8)]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.floats(width=32), max_size=70),
    st.booleans(),
    st.sampled_from(DIGITS),
    st.data(),
)
def test_equals_bincount(values: list[float], some: bool, digit: tuple[int, int], data: st.DataObject) -> None:
    shift, bits = digit
    numbers = torch.tensor(values, dtype=torch.float32)
    keys = numbers.view(torch.int32).long() & 0x7FFFFFFF
    prefix = 0
    if values and shift + bits < 32:
        prefix = int(keys[data.draw(st.integers(0, len(values) - 1))]) >> (shift + bits)
    chosen = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))), dtype=torch.bool
    )
    counted = keys[(keys >> (shift + bits) == prefix) & (chosen | (not some))]
    before = torch.arange(1 << bits)
    counts = before.clone()
    count_digits(numbers, chosen if some else None, counts, shift, bits, prefix)
    expected = torch.bincount((counted >> shift) & ((1 << bits) - 1), minlength=1 << bits)
    assert torch.equal(counts - before, expected)


def test_the_top_digit_of_a_magnitude_needs_half_the_places() -> None:
    counts = torch.zeros(1 << 15, dtype=torch.int64)
    count_digits(torch.tensor([-float("nan"), float("inf"), -0.0, 1.0]), None, counts, 16, 16)
    assert counts.nonzero().view(-1).tolist() == [0, 0x3F80, 0x7F80, 0x7FC0]


def test_what_it_cannot_count_is_refused() -> None:
    counts = torch.zeros(1 << 16, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"numbers: expected contiguous torch\.float32 on the CPU, got torch\.float64"):
        count_digits(torch.ones(3).double(), None, counts, 0, 16)
    with pytest.raises(ValueError, match=r"numbers: expected contiguous .* of strides \(2,\)"):
        count_digits(torch.ones(6)[::2], None, counts, 0, 16)
    with pytest.raises(ValueError, match="chosen: expected 3 of them, got 2"):
        count_digits(torch.ones(3), torch.ones(2) > 0, counts, 0, 16)
    with pytest.raises(ValueError, match="counts: expected 32768 places, got 256"):
        count_digits(torch.ones(3), None, counts[:256], 16, 16)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(width=32), min_size=1, max_size=70), st.data())
def test_marks_the_chosen_above_a_key(values: list[float], data: st.DataObject) -> None:
    numbers = torch.tensor(values, dtype=torch.float32)
    keys = numbers.view(torch.int32) & 0x7FFFFFFF
    key = data.draw(st.sampled_from([-1, *keys.tolist()]))
    chosen = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))), dtype=torch.bool
    )
    assert torch.equal(mark_above(numbers, chosen, key), (keys > key) & chosen)


def test_marks_only_what_it_can_read() -> None:
    with pytest.raises(ValueError, match=r"numbers: expected contiguous torch\.float32 on the CPU"):
        mark_above(torch.ones(3).double(), torch.ones(3) > 0, 0)
    with pytest.raises(ValueError, match="chosen: expected 3 of them, got 2"):
        mark_above(torch.ones(3), torch.ones(2) > 0, 0)
