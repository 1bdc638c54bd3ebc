"""dW = dy xᵀ on tensor cores at the kept places of a sparse W in panels: the weight gradient, 16 bits, float32 sums.

A program multiplies a few columns of a panel, and stores of the product what is kept. Where that makes too few programs
to fill the chip, the tokens are cut into parts, whose sums are added at the end, in order.

Shapes: O rows, Z kept weights, R height.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow_kernels.triton_device import divisor, multiprocessors
from sparseflow_kernels.triton_lines import Lines
from sparseflow_kernels.triton_panel import check_panels, is_interpreted
from sparseflow_kernels.triton_panel_jit import panel_sddmm_kernel
from sparseflow_kernels.triton_panels import Panels
from sparseflow_kernels.triton_powers import check_least, check_powers
from sparseflow_kernels.triton_sddmm_jit import add_parts_kernel


@dataclass(frozen=True)
class PanelGradientConfig:
    """How one program works: on `slots` columns of a panel, `tokens` a step, with `warps` warps.

    `stages`: steps under way at once.
    """

    slots: int
    tokens: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        check_powers(self, "slots", "tokens", "warps")
        check_least(self, 1, "stages")

    def shared(self, height: int) -> int:
        """Bytes of shared memory that it may take: of steps under way, or of the product on its way out."""
        return max(2 * self.stages * self.tokens * (height + self.slots), 4 * height * self.slots)


def panel_sddmm(
    panels: Panels,
    dy: Tensor,
    x: Tensor,
    lines: Lines,
    dtype: torch.dtype = torch.float32,
    config: PanelGradientConfig | None = None,
) -> Tensor:
    """(Z,), of that dtype: the gradients in canonical order. `dy`: (O, tokens), rows contiguous, of the dtype of x.

    `ValueError` where shapes, devices or dtypes do not fit.
    """
    check_panels(panels, x, lines)
    if dy.shape != (panels.rows, lines.tokens) or (lines.tokens > 1 and dy.stride(1) != 1) or dy.dtype != x.dtype:
        raise ValueError(
            f"expected dy of shape ({panels.rows}, {lines.tokens}) of {x.dtype} with contiguous rows, "
            f"got {tuple(dy.shape)} of {dy.dtype} with strides {tuple(dy.stride())}"
        )
    config = config or default_config(panels.height, x.device)
    if panels.nnz == 0 or lines.tokens == 0:
        return x.new_zeros(panels.nnz, dtype=dtype)
    programs = panels.count * -(-panels.longest // config.slots)
    tiles_of_line = -(-lines.run // config.tokens)
    tiles = tiles_of_line * lines.count
    tiles_of_part = -(-tiles // min(tiles, -(-_PROGRAMS * multiprocessors(x.device) // programs)))
    parts = -(-tiles // tiles_of_part)
    sums = x.new_empty(parts, panels.nnz, dtype=torch.float32 if parts > 1 else dtype)
    panel_sddmm_kernel[(programs, parts)](
        dy,
        x,
        panels.index,
        panels.starts,
        panels.widths,
        panels.kept,
        panels.first,
        panels.source,
        lines.offsets,
        lines.table,
        sums,
        programs // panels.count,
        panels.rows,
        lines.run,
        tiles_of_line,
        tiles_of_part,
        lines.count,
        lines.pitch,
        dy.stride(0) if panels.rows > 1 else lines.tokens,
        panels.nnz,
        HEIGHT=panels.height,
        SLOTS=config.slots,
        TOKENS=config.tokens,
        UNIT=divisor(lines.unit),
        WIDEN=is_interpreted(),
        num_warps=config.warps,
        num_stages=config.stages,
    )
    if parts == 1:
        return sums[0]
    out = x.new_empty(panels.nnz, dtype=dtype)
    add_parts_kernel[(-(-panels.nnz // 1024),)](sums, out, panels.nnz, parts, BLOCK=1024, num_warps=4)
    return out


# Programs for each multiprocessor.
_PROGRAMS = 2


def default_config(height: int, device: torch.device) -> PanelGradientConfig:
    """What to use where nothing was measured."""
    return INTERPRETED if device.type == "cpu" else DEFAULT["hip" if torch.version.hip else "cuda"][height]


# By vendor and height.
DEFAULT = {
    "cuda": {64: PanelGradientConfig(128, 64, 8, 3), 128: PanelGradientConfig(128, 64, 8, 3)},
    "hip": {64: PanelGradientConfig(128, 64, 8, 2), 128: PanelGradientConfig(128, 64, 8, 2)},
}
INTERPRETED = PanelGradientConfig(64, 256, 4, 1)
_SPACE = [
    PanelGradientConfig(slots, tokens, warps, stages)
    for slots, tokens, warps in ((64, 32, 4), (64, 64, 4), (64, 64, 8), (128, 32, 8), (128, 64, 8))
    for stages in (2, 3, 4)
]


def configs(height: int, shared: int) -> list[PanelGradientConfig]:
    """What is worth measuring on a chip with that much shared memory, in bytes."""
    return [config for config in _SPACE if config.shared(height) <= shared]
