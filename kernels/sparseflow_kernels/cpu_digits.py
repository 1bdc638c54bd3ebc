"""Keys of float32 numbers: counts their digits, how many of them have each value, and marks those above one."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from sparseflow_kernels.cpu_ir import Int, Module
from sparseflow_kernels.cpu_jit import function
from sparseflow_kernels.cpu_target import host

_KEY_BITS = 32
_MAGNITUDE = 0x7FFFFFFF


def count_digits(
    numbers: Tensor, chosen: Tensor | None, counts: Tensor, shift: int, bits: int, prefix: int = 0
) -> None:
    """Adds to counts[d] how many keys have the digit d: `bits` of them from `shift` on, where those above are `prefix`.

    The key of a number is its 32 bits without the sign, an integer that orders like the magnitude. numbers: float32;
    chosen: bool, of the same size, True for those that count, None: all; counts: int64, with one place a digit. All
    contiguous and on the CPU, else ValueError. One thread.
    """
    _check("numbers", numbers, torch.float32)
    _check("counts", counts, torch.int64)
    if chosen is not None:
        _check("chosen", chosen, torch.bool)
        if chosen.numel() != numbers.numel():
            raise ValueError(f"chosen: expected {numbers.numel()} of them, got {chosen.numel()}")
    # The top digit of a magnitude lacks the sign's bit.
    values = 1 << (min(shift + bits, _KEY_BITS - 1) - shift)
    if counts.numel() < values:
        raise ValueError(f"counts: expected {values} places, got {counts.numel()}")
    chosen_address = 0 if chosen is None else chosen.data_ptr()
    _function(shift, bits)(numbers.data_ptr(), chosen_address, numbers.numel(), prefix, counts.data_ptr())


def mark_above(numbers: Tensor, chosen: Tensor, key: int) -> Tensor:
    """A bool tensor like `chosen`: those chosen whose keys, as above, are higher. Raises as `count_digits` does."""
    _check("numbers", numbers, torch.float32)
    _check("chosen", chosen, torch.bool)
    if chosen.numel() != numbers.numel():
        raise ValueError(f"chosen: expected {numbers.numel()} of them, got {chosen.numel()}")
    marks = torch.empty_like(chosen)
    _marking()(numbers.data_ptr(), chosen.data_ptr(), numbers.numel(), key, marks.data_ptr())
    return marks


@functools.cache
def _function(shift: int, bits: int) -> Callable[..., None]:
    """count(numbers, chosen or 0, size, prefix, counts): addresses and integers."""
    module = Module(host())
    code = module.function("count", ["numbers", "chosen", "size", "prefix", "counts"])
    numbers, chosen, size, prefix, counts = code.arguments

    spread = min(64, 1 << (min(shift + bits, _KEY_BITS - 1) - shift)) - 1

    def count(i: Int, amount: Int) -> None:
        key = code.load_int32(numbers, i) & _MAGNITUDE
        with code.when((key // (1 << (shift + bits))).equals(prefix)):
            digit = (key // (1 << shift)) & ((1 << bits) - 1)
            # Those that do not count add nothing, here and there: pruned weights are all zero, and to add to one
            # place over and over waits for each addition.
            digit = code.either(amount >= 1, digit, i & spread)
            code.store_int(code.load_int(counts, digit) + amount, counts, digit)

    def count_all(one: Callable[[Int], None]) -> None:
        if shift + bits >= _KEY_BITS:
            code.loop(0, size, one)
            return
        # Few keys have the prefix: most are passed over a vector at a time.
        whole = size - size % code.lanes

        def skim(i: Int) -> None:
            above = code.builder.lshr(code.words(numbers, i, _MAGNITUDE), code.splat_word(shift + bits))
            with code.when(code.any_lane(code.builder.icmp_unsigned("==", above, code.splat_word(prefix)))):
                code.loop(i, i + code.lanes, one)

        code.loop(0, whole, skim, step=code.lanes)
        code.loop(whole, size, one)

    with code.choice(chosen.equals(0)) as (every, some):
        with every:
            count_all(lambda i: count(i, code.number(1)))
        with some:
            count_all(lambda i: count(i, code.load_byte(chosen, i)))
    code.finish()
    return _callable(module, "count", 5)


@functools.cache
def _marking() -> Callable[..., None]:
    """mark(numbers, chosen, size, key, marks): addresses and integers."""
    module = Module(host())
    code = module.function("mark", ["numbers", "chosen", "size", "key", "marks"])
    numbers, chosen, size, key, marks = code.arguments
    whole = size - size % code.lanes

    def vector(i: Int) -> None:
        above = code.builder.icmp_signed(">", code.words(numbers, i, _MAGNITUDE), code.splat_word(key))
        code.store_bytes(above, code.bytes(chosen, i), marks, i)

    def single(i: Int) -> None:
        above = (code.load_int32(numbers, i) & _MAGNITUDE) >= key + 1
        code.store_byte(code.either(above, code.load_byte(chosen, i), 0), marks, i)

    code.loop(0, whole, vector, step=code.lanes)
    code.loop(whole, size, single)
    code.finish()
    return _callable(module, "mark", 5)


def _callable(module: Module, name: str, arguments: int) -> Callable[..., None]:
    # Not a `Kernel`: on one thread it needs no OpenMP.
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)(function(module, name))


def _check(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype is not dtype or not tensor.is_cpu or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: expected contiguous {dtype} on the CPU, got {tensor.dtype} of strides {tensor.stride()} on "
            f"{tensor.device}"
        )
