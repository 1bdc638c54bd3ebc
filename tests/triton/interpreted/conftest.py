"""Every test of this folder runs the kernels under Triton's interpreter, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

if not isinstance(tl.sum, InterpretedFunction):
    raise pytest.UsageError("triton is imported already; run these tests in a process of their own, before others")


def pytest_configure(config: pytest.Config) -> None:
    # The interpreter of Triton 3.6 does this with every loop.
    warning = "Conversion of an array with ndim > 0 to a scalar is deprecated"
    config.addinivalue_line("filterwarnings", f"ignore:{warning}:DeprecationWarning:triton.runtime.interpreter")


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Iterator[None]:
    """Lets every tensor that is made without values hold NaN: what a kernel does not write then shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
