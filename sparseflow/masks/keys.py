"""Keys: scores as integers that order like them, a chunk at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from sparseflow.masks.criteria import Scores

# Elements; bounds the memory above the scores and the masks.
CHUNK = 1 << 20
DIGIT_BITS = 16

_INTEGERS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


@dataclass(frozen=True)
class Keys:
    """The keys of the survivors' scores: bits of a finite float, sign apart, order like the float.

    -0.0 and +0.0 get the same key. Dtypes that differ are promoted. survivors: bool tensors, True for the
    scores that take part; None: all do. Raises TypeError for a dtype that is not bfloat16, float16, float32
    or float64.
    """

    scores: Scores
    survivors: Mapping[str, Tensor] | None

    def __post_init__(self) -> None:
        for name, tensor in self.scores.tensors.items():
            if tensor.dtype not in _INTEGERS:
                raise TypeError(
                    f"score of {name!r}: expected bfloat16, float16, float32 or float64, got {tensor.dtype}"
                )

    def chunks(self, name: str) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Yields the place, the keys and the survivors of each chunk of a parameter, in row-major order."""
        flat = self.scores.tensors[name].detach().reshape(-1)
        alive = None if self.survivors is None else self.survivors[name].reshape(-1)
        for start in range(0, flat.numel(), CHUNK):
            where = slice(start, start + CHUNK)
            yield where, self._keys(flat[where]), None if alive is None else alive[where]

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that all scores are promoted to."""
        return reduce(torch.promote_types, (tensor.dtype for tensor in self.scores.tensors.values()))

    @property
    def bits(self) -> int:
        """The bits of a key."""
        return 8 * self.dtype.itemsize

    @property
    def lowest(self) -> int:
        """A key below that of every finite score."""
        return -1 if self.scores.absolute else -(1 << (self.bits - 1))

    @property
    def top_offset(self) -> int:
        """What makes the lowest top digit 0."""
        return 0 if self.scores.absolute else 1 << (DIGIT_BITS - 1)

    @property
    def infinity_digit(self) -> int:
        """The top digit of infinity; that of a NaN is as high or higher, that of a positive float lower."""
        infinity = torch.tensor(torch.inf, dtype=self.dtype).view(_INTEGERS[self.dtype])
        return int(infinity) >> (self.bits - DIGIT_BITS)

    def _keys(self, chunk: Tensor) -> Tensor:
        integers = chunk.to(self.dtype).view(_INTEGERS[self.dtype])
        magnitudes = integers & ((1 << (self.bits - 1)) - 1)
        if self.scores.absolute:
            return magnitudes
        # Two's complement negation of the magnitude where the sign bit is set.
        signs = integers >> (self.bits - 1)
        return (magnitudes ^ signs) - signs
