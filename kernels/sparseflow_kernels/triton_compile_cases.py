"""Every Triton kernel in every configuration that may be launched, as cases for the compiler.

Sizes are those of a large layer. Nothing is computed: what a launch depends on is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
_GATHER_HEIGHTS = (16, 8, 32, 64)
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
    found = [*_packing(CHIPS[chip]), *_slices(CHIPS[chip]), *_panels(CHIPS[chip])]
    return [case for case in found if every or (case.is_default and case.dtype != "fp16")]


def _slices(chip: Chip) -> Iterator[Case]:
    nnz = _coo().rows.numel()
    for (name, dtype), height in ((item, height) for item in DTYPES.items() for height in _GATHER_HEIGHTS):
        structure = slices(*_coo(), height)
        x, dy = _matrix(dtype), _matrix(dtype)
        packed, bias = torch.empty(structure.slots, dtype=dtype), torch.empty(_SIZE)
        size = dtype.itemsize
        for spmm in _all(triton_spmm.DEFAULT[size], triton_spmm.CONFIGS[size]):
            usual = spmm == triton_spmm.DEFAULT[size]
            for kind, lines in _lines(x, usual).items():
                run = partial(triton_spmm.spmm, structure, packed, x, lines, dtype, bias, True, spmm)
                is_default = usual and height == _GATHER_HEIGHTS[0] and kind != "odd"
                yield Case(chip, f"spmm{height} {kind}", name, _text(spmm), is_default, run, False, _whole(kind, dtype))
        for sddmm in _all(triton_sddmm.DEFAULT[size], triton_sddmm.CONFIGS[size]):
            usual = sddmm == triton_sddmm.DEFAULT[size]
            for kind, lines in _lines(x, usual).items():
                run = partial(triton_sddmm.sddmm, structure, dy[:, : lines.tokens], x, lines, nnz, config=sddmm)
                is_default = usual and height == _GATHER_HEIGHTS[0] and kind != "odd"
                yield Case(chip, f"sddmm{height} {kind}", name, _text(sddmm), is_default, run, False, _whole(kind, dtype))


def _panels(chip: Chip) -> Iterator[Case]:
    vendor, from_shared = chip.target.backend, chip.name in ("sm_90", "sm_100")
    for (name, dtype), height in ((item, height) for item in DTYPES.items() for height in HEIGHTS):
        if dtype.itemsize != 2:
            continue
        structure = panels(*_coo(), height)
        x, dy, bias = _matrix(dtype), _matrix(dtype), torch.empty(_SIZE)
        packed = torch.empty(structure.slots * height, dtype=dtype)
        default = triton_panel.DEFAULT[vendor][height]
        for config in _all(default, triton_panel.configs(height, chip.shared, from_shared)):
            for kind, lines in _lines(x, config == default).items():
                run = partial(triton_panel.panel_spmm, structure, packed, x, lines, dtype, bias, True, config)
                is_default = config == default and kind != "odd"
                yield Case(chip, f"panel{height} {kind}", name, _text(config), is_default, run, True, _whole(kind, dtype))
        usual = triton_panel_gradient.DEFAULT[vendor][height]
        for gradient in _all(usual, triton_panel_gradient.configs(height, chip.shared)):
            for kind, lines in _lines(x, gradient == usual).items():
                run = partial(triton_panel_gradient.panel_sddmm, structure, dy[:, : lines.tokens], x, lines, config=gradient)
                is_default = gradient == usual and kind != "odd"
                yield Case(chip, f"panel{height} wgrad {kind}", name, _text(gradient), is_default, run, True, _whole(kind, dtype))


def _packing(chip: Chip) -> Iterator[Case]:
    sliced, panelled = slices(*_coo(), _GATHER_HEIGHTS[0]), panels(*_coo(), HEIGHTS[0])
    values = torch.empty(panelled.nnz)
    for name, dtype in DTYPES.items():
        run: Callable[[], object] = partial(refresh, values, [sliced.source, sliced.source], dtype)
        yield Case(chip, "refresh", name, "", True, run)
        if dtype.itemsize == 2:
            run = partial(fill_panels, panelled, values, dtype)
            yield Case(chip, "fill panels", name, "", True, run)


@cache
def _coo() -> Coo:
    return forward_coo(torch.rand(_SIZE, _SIZE, generator=torch.Generator().manual_seed(0)) < 0.1)


def _matrix(dtype: torch.dtype) -> Tensor:
    return torch.empty(_SIZE, _TOKENS, dtype=dtype)


def _lines(x: Tensor, usual: bool) -> dict[str, Lines]:
    """How x may be read; all ways for a default configuration only."""
    found = {"linear": linear_lines(x)}
    if usual:
        run = _TOKENS // _LINES
        places = [torch.arange(count) * run for count in (_LINES, _SIZE)]
        found["conv"] = Lines(_SIZE, _LINES, run, 0, x.numel(), places[0], places[1], run)
        found["odd"] = Lines(_SIZE, 1, _TOKENS - 1, _TOKENS, x.numel())
    return found


def _whole(kind: str, dtype: torch.dtype) -> int:
    return 0 if kind == "odd" else dtype.itemsize


def _all(default: Any, configs: list[Any]) -> list[Any]:
    return [default, *(config for config in configs if config != default)]


def _text(config: Any) -> str:
    return "×".join(str(number) for number in astuple(config))
