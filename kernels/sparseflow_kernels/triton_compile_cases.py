"""Every Triton kernel in every configuration that may be launched, as cases for the compiler.

Sizes are those of a large layer. Nothing is computed: what a launch depends on is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from functools import cache, partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from sparseflow_kernels import triton_panel, triton_panel_gradient, triton_sddmm, triton_spmm
from sparseflow_kernels.triton_compile import CHIPS, Chip, Launch, recorded
from sparseflow_kernels.triton_coo import Coo, forward_coo
from sparseflow_kernels.triton_lines import Lines, linear_lines
from sparseflow_kernels.triton_pack import refresh
from sparseflow_kernels.triton_panel_pack import fill_panels
from sparseflow_kernels.triton_panels import HEIGHTS, panels
from sparseflow_kernels.triton_slices import slices

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Of slices. The first stands for all of them where only defaults are asked for.
_GATHER_HEIGHTS = (64, 16, 32, 128)
_SIZE, _TOKENS, _LINES, _MULTIPROCESSORS = 512, 8192, 8, 132


@dataclass(frozen=True)
class Case:
    """One launcher in one configuration, for one chip."""

    chip: Chip
    kernel: str
    dtype: str
    config: str
    is_default: bool
    run: Callable[[], object]
    # Whether tensor cores must do it; bytes of a number, where it must read rows of them 16 bytes at a time.
    tensor_core: bool = False
    itemsize: int = 0

    def launches(self) -> list[Launch]:
        """What a GPU would be told, the one that counts first."""
        threads = self.chip.target.warp_size
        with ExitStack() as stack:
            for module in (triton_spmm, triton_sddmm):
                stack.enter_context(mock.patch.object(module, "threads_of_warp", lambda: threads))
            for module in (triton_spmm, triton_panel_gradient):
                stack.enter_context(mock.patch.object(module, "multiprocessors", lambda _: _MULTIPROCESSORS))
            return recorded(self.run)


def cases(chip: str, every: bool) -> list[Case]:
    """The cases of a chip; without `every`, of the default configurations, where bfloat16 stands for float16 too."""
    return list(_every(CHIPS[chip]) if every else _defaults(CHIPS[chip]))


def _every(chip: Chip) -> Iterator[Case]:
    for dtype in DTYPES.values():
        yield from _packing(chip, dtype)
        for height in _GATHER_HEIGHTS:
            yield from _slices(chip, dtype, height)
        if dtype.itemsize == 2:
            for height in HEIGHTS:
                yield from _panels(chip, dtype, height)


def _defaults(chip: Chip) -> Iterator[Case]:
    for case in _every(chip):
        if case.is_default and case.dtype != "fp16":
            yield case


def _slices(chip: Chip, dtype: torch.dtype, height: int) -> Iterator[Case]:
    structure, nnz = slices(*_coo(), height), _coo().rows.numel()
    x, dy, bias = _matrix(dtype), _matrix(dtype), torch.empty(_SIZE)
    packed = torch.empty(structure.slots, dtype=dtype)

    def spmm(lines: Lines, config: Any) -> None:
        triton_spmm.spmm(structure, packed, x, lines, dtype, bias, True, config)

    def sddmm(lines: Lines, config: Any) -> None:
        triton_sddmm.sddmm(structure, dy[:, : lines.tokens], x, lines, nnz, config=config)

    is_usual = height == _GATHER_HEIGHTS[0]
    default, others = triton_spmm.DEFAULT[x.itemsize], _fitting(triton_spmm.CONFIGS[x.itemsize], height)
    yield from _configured(f"spmm{height}", chip, x, spmm, default, others, False, is_usual)
    default_gradient, gradients = triton_sddmm.DEFAULT[x.itemsize], _fitting(triton_sddmm.CONFIGS[x.itemsize], height)
    yield from _configured(f"sddmm{height}", chip, x, sddmm, default_gradient, gradients, False, is_usual)


def _panels(chip: Chip, dtype: torch.dtype, height: int) -> Iterator[Case]:
    structure, vendor = panels(*_coo(), height), chip.target.backend
    x, dy, bias = _matrix(dtype), _matrix(dtype), torch.empty(_SIZE)
    packed = torch.empty(structure.slots * height, dtype=dtype)

    def spmm(lines: Lines, config: Any) -> None:
        triton_panel.panel_spmm(structure, packed, x, lines, dtype, bias, True, config)

    def sddmm(lines: Lines, config: Any) -> None:
        triton_panel_gradient.panel_sddmm(structure, dy[:, : lines.tokens], x, lines, config=config)

    others = triton_panel.configs(height, chip.shared, from_shared=chip.name in ("sm_90", "sm_100"))
    yield from _configured(f"panel{height}", chip, x, spmm, triton_panel.DEFAULT[vendor][height], others, True)
    default, gradients = (
        triton_panel_gradient.DEFAULT[vendor][height],
        triton_panel_gradient.configs(height, chip.shared),
    )
    yield from _configured(f"panel{height} wgrad", chip, x, sddmm, default, gradients, True)


def _fitting(configs: Sequence[Any], height: int) -> list[Any]:
    """Without those that want more lanes than a slice has: with fewer they are others of these, or too small."""
    return [config for config in configs if config.lanes <= height]


def _configured(
    kernel: str,
    chip: Chip,
    x: Tensor,
    launch: Callable[[Lines, Any], None],
    default: Any,
    configs: Sequence[Any],
    tensor_core: bool,
    is_usual: bool = True,
) -> Iterator[Case]:
    """The default in every way to read x, the other configurations in one."""
    for config in [default, *(config for config in configs if config != default)]:
        for kind, lines in _lines(x).items():
            if kind == "linear" or config == default:
                text = "×".join(str(number) for number in astuple(config))
                is_default = is_usual and config == default and kind != "odd"
                itemsize = 0 if kind == "odd" else x.itemsize
                run = partial(launch, lines, config)
                yield Case(chip, f"{kernel} {kind}", _name(x.dtype), text, is_default, run, tensor_core, itemsize)


def _packing(chip: Chip, dtype: torch.dtype) -> Iterator[Case]:
    sliced, panelled = slices(*_coo(), _GATHER_HEIGHTS[0]), panels(*_coo(), HEIGHTS[0])
    values = torch.empty(panelled.nnz)
    run = partial(refresh, values, [sliced.source, sliced.source], dtype)
    yield Case(chip, "refresh", _name(dtype), "", True, run)
    if dtype.itemsize == 2:
        yield Case(chip, "fill panels", _name(dtype), "", True, partial(fill_panels, panelled, values, dtype))


@cache
def _coo() -> Coo:
    return forward_coo(torch.rand(_SIZE, _SIZE, generator=torch.Generator().manual_seed(0)) < 0.1)


def _matrix(dtype: torch.dtype) -> Tensor:
    return torch.empty(_SIZE, _TOKENS, dtype=dtype)


def _lines(x: Tensor) -> dict[str, Lines]:
    """How x may be read."""
    run = _TOKENS // _LINES
    offsets, table = (torch.arange(count) * run for count in (_LINES, _SIZE))
    return {
        "linear": linear_lines(x),
        "conv": Lines(_SIZE, _LINES, run, 0, x.numel(), offsets, table, run),
        "odd": Lines(_SIZE, 1, _TOKENS - 1, _TOKENS, x.numel()),
    }


def _name(dtype: torch.dtype) -> str:
    return next(name for name, other in DTYPES.items() if other == dtype)
