"""The number formats of operands: rounded to nearest, ties to even, and held in float32, where products accumulate.

| format | sign, exponent, fraction bits | how |
|---|---|---|
| fp32 | 1-8-23 | as it is |
| fp16 | 1-5-10 | torch's cast |
| bf16 | 1-8-7 | torch's cast |
| cb16 | 1-6-9 | emulated: exponent bias 31 |

No public document gives CB16's rules beyond its bits. Ours are those of IEEE 754: the largest exponent is kept for inf
and NaN, what rounds beyond the largest finite number (2³² - 2²²) becomes inf, and below 2⁻³⁰ numbers are subnormal,
multiples of 2⁻³⁹.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# CB16: fraction bits, the quantum of its subnormals, its largest finite number.
_FRACTION = 9
_QUANTUM = 2.0**-39
_SMALLEST_NORMAL = 2.0**-30
_LARGEST = (2 - 2.0**-_FRACTION) * 2.0**31


@dataclass(frozen=True)
class Format:
    """nbytes: of a number on the wire. scale: of the loss at first and at most; None where it needs no scaling."""

    name: str
    nbytes: int
    round: Callable[[Tensor], Tensor]
    scale: float | None


def format_of(name: str) -> Format:
    """The format of that name. `ValueError` with the choices where there is none."""
    if name not in _FORMATS:
        raise ValueError(f"no format {name!r}; available: {', '.join(_FORMATS)}")
    return _FORMATS[name]


def round_cb16(x: Tensor) -> Tensor:
    """float32 → the nearest numbers of CB16, in float32; ties go to the even fraction. NaN stays NaN."""
    dropped = 23 - _FRACTION
    bits = x.view(torch.int32)
    # Half of the last place, less one where that place is even: what is above a tie is carried into the place.
    carried = (bits + (2 ** (dropped - 1) - 1) + (bits >> dropped & 1)) & -(2**dropped)
    normal = carried.view(torch.float32)
    subnormal = torch.round(x / _QUANTUM) * _QUANTUM
    rounded = torch.where(x.abs() < _SMALLEST_NORMAL, subnormal, normal)
    overflown = torch.where(rounded.abs() > _LARGEST, torch.inf * x.sign(), rounded)
    return torch.where(x.isnan(), x, overflown)


class RoundedProducts(TorchFunctionMode):
    """While it is on, the products of linear layers and convolutions take rounded inputs, and their backward dy.

    Weights come rounded already: they were when they were fetched.
    """

    def __init__(self, format: Format) -> None:
        super().__init__()
        self._round = format.round

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        place = _INPUT_OF.get(func)
        if place is None:
            return func(*args, **kwargs)
        position, keyword = place
        if len(args) > position:
            args = (*args[:position], _rounded(args[position], self._round), *args[position + 1 :])
        else:
            kwargs[keyword] = _rounded(kwargs[keyword], self._round)
        y = func(*args, **kwargs)
        return cast(Tensor, _RoundGradient.apply(y, self._round))  # type: ignore[no-untyped-call]


def _rounded(x: Tensor, round: Callable[[Tensor], Tensor]) -> Tensor:
    return cast(Tensor, _Round.apply(x, round))  # type: ignore[no-untyped-call]


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, round: Callable[[Tensor], Tensor]) -> Tensor:
        return round(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return dy, None


class _RoundGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, round: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.round = round
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.round(dy), None


def _through(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(dtype).to(x.dtype)


_FORMATS = {
    "fp32": Format("fp32", 4, lambda x: x, None),
    "fp16": Format("fp16", 2, _through(torch.float16), 2.0**15),
    "bf16": Format("bf16", 2, _through(torch.bfloat16), None),
    "cb16": Format("cb16", 2, round_cb16, 2.0**31),
}

# Where a product takes its input. `torch.addmm` is transformers' Conv1D.
_INPUT_OF: dict[object, tuple[int, str]] = {
    F.linear: (0, "input"),
    torch.addmm: (1, "mat1"),
    F.conv1d: (0, "input"),
    F.conv2d: (0, "input"),
    F.conv3d: (0, "input"),
    F.conv_transpose1d: (0, "input"),
    F.conv_transpose2d: (0, "input"),
    F.conv_transpose3d: (0, "input"),
}
