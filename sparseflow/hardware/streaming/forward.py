"""What holds during the forward of a streamed model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from sparseflow.hardware.product import autocasts
from sparseflow.hardware.streaming.fetch import Lender, forgetting
from sparseflow.hardware.streaming.formats import Format, RoundedProducts


@contextmanager
def streamed_forward(lender: Lender, format: Format, device: torch.device) -> Iterator[None]:
    """While it is on, autograd keeps no lent weight, and products round their operands to the format.

    `ValueError` under autocast.
    """
    if autocasts(device.type):
        raise ValueError(
            "a streamed model cannot run under autocast, which keeps a copy of each weight for backward; pass "
            "sf.stream(..., format='bf16') or 'fp16' instead"
        )
    rounding = nullcontext() if format.name == "fp32" else RoundedProducts(format)
    with _slow_attention(), forgetting(lender), rounding:
        yield


@contextmanager
def _slow_attention() -> Iterator[None]:
    # The fast path of torch's encoder layer reads the weights of six modules before it uses the first.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
