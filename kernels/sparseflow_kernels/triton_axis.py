"""One dimension, height or width, of a convolution, taken apart into phases.

A convolution of any stride s and dilation is one of stride 1 over *phases*: input row h = s u + a is cell u of phase a.
Tap i of the kernel reads, for output u, cell u + shift(i) of phase(i), and no other phase. So the forward gathers from
the phases of x, each padded with zeros; and the input gradient of phase a gathers, at u - shift(i), from dy, by the
taps of that phase only. Nothing is multiplied by a zero that the stride put there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """The image is `size` long."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def out(self) -> int:
        return (self.size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    @property
    def cells(self) -> int:
        """Cells of the largest phase."""
        return -(-self.size // self.stride)

    @property
    def low(self) -> int:
        """The least shift: 0 or less."""
        return self.shift(0)

    @property
    def high(self) -> int:
        """The largest shift; below 0 where padding reaches farther than the kernel."""
        return self.shift(self.kernel - 1)

    @property
    def span(self) -> int:
        """Cells that a row of outputs reads beyond its own number."""
        return self.high - self.low

    @property
    def phases(self) -> list[int]:
        """The phases that some tap reads, ascending."""
        return sorted({self.phase(i) for i in range(self.kernel)})

    def shift(self, tap: int) -> int:
        return (tap * self.dilation - self.padding) // self.stride

    def phase(self, tap: int) -> int:
        return (tap * self.dilation - self.padding) % self.stride
