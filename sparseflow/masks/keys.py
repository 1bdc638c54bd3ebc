"""Keys: scores as integers that order like them, a chunk at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements; bounds the memory above the scores and the masks.
CHUNK = 1 << 20

_INTEGERS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}

# What scores can be.
DTYPES = tuple(_INTEGERS)


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """Raises TypeError for a dtype of scores that is not bfloat16, float16, float32 or float64."""
    if dtype not in _INTEGERS:
        raise TypeError(f"score of {name!r}: expected bfloat16, float16, float32 or float64, got {dtype}")


@dataclass(frozen=True)
class Keys:
    """How scores become integers: bits of a finite float, sign apart, order like the float.

    dtype: what scores are promoted to. absolute: the keys are those of |score|, and never negative. -0.0 and
    +0.0 get the same key.
    """

    dtype: torch.dtype
    absolute: bool

    def chunks(self, scores: Tensor, survivors: Tensor | None) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Yields the place, the keys and the survivors of each chunk of a tensor, in row-major order."""
        flat = scores.detach().reshape(-1)
        alive = None if survivors is None else survivors.reshape(-1)
        for start in range(0, flat.numel(), CHUNK):
            where = slice(start, start + CHUNK)
            yield where, self._keys(flat[where]), None if alive is None else alive[where]

    @property
    def bits(self) -> int:
        """The bits of a key."""
        return 8 * self.dtype.itemsize

    @property
    def lowest(self) -> int:
        """A key below that of every finite score."""
        return -1 if self.absolute else -(1 << (self.bits - 1))

    def top_digits(self, digit_bits: int) -> int:
        """How many values the top digit of a key can have."""
        return 1 << (digit_bits - 1 if self.absolute else digit_bits)

    def top_offset(self, digit_bits: int) -> int:
        """What makes the lowest top digit 0."""
        return 0 if self.absolute else 1 << (digit_bits - 1)

    def infinity_digit(self, digit_bits: int) -> int:
        """The top digit of infinity; that of a NaN is as high or higher, that of a finite float at most as high."""
        infinity = torch.tensor(torch.inf, dtype=self.dtype).view(_INTEGERS[self.dtype])
        return int(infinity) >> (self.bits - digit_bits)

    def _keys(self, chunk: Tensor) -> Tensor:
        integers = chunk.to(self.dtype).view(_INTEGERS[self.dtype])
        magnitudes = integers & ((1 << (self.bits - 1)) - 1)
        if self.absolute:
            return magnitudes
        # Two's complement negation of the magnitude where the sign bit is set.
        signs = integers >> (self.bits - 1)
        return (magnitudes ^ signs) - signs
