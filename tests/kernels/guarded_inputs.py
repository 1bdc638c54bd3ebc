"""Runs the linear kernels on inputs that end right before a page that may not be touched: a wrong read is a crash."""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch
from linear_case import LinearCase
from torch import Tensor

from sparseflow_kernels.cpu_target import AVX2, host

_libc = ctypes.CDLL(None, use_errno=True)
_pages: list[mmap.mmap] = []


def guarded(tensor: Tensor) -> Tensor:
    """The same numbers with the same strides, their last byte before a forbidden page."""
    flat = tensor.t() if tensor.dim() == 2 and tensor.stride(0) == 1 else tensor
    size = -(-flat.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    _pages.append(pages)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert _libc.mprotect(ctypes.c_void_p(address + size), mmap.PAGESIZE, 0) == 0
    start = size - flat.nbytes
    copy = torch.frombuffer(pages, dtype=flat.dtype, count=flat.numel(), offset=start).view(flat.shape)
    copy.copy_(flat)
    return copy.t() if flat is not tensor else copy


def main() -> None:
    calls = 0
    for rows in (1, 60, 128):
        for feature_major in (False, True):
            for dtype in (torch.float32, torch.bfloat16):
                layouts = {"x_feature_major": feature_major, "y_feature_major": feature_major, "relu": feature_major}
                target = host() if sys.argv[1] == "host" else AVX2
                case = LinearCase(33, 21, rows, 0.3, 16, target, dtype=dtype, **layouts)
                y = case.forward()
                case.x, case.dy, case.bias = guarded(case.x), guarded(case.dy), guarded(case.bias)
                weight = guarded(case.native(case.weight))
                case.native = lambda _, weight=weight: weight  # type: ignore[method-assign, misc]
                assert torch.equal(case.forward(), y)
                case.backward(guarded(y))
                calls += 2
    print("calls", calls)


if __name__ == "__main__":
    main()
