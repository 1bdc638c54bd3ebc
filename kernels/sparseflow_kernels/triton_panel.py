"""y = W x on tensor cores for a sparse W in panels and a feature-major x, with bias and ReLU: 16 bits, float32 sums.

A panel multiplies the rows of x that any of its rows needs: it gathers each once for 64 or 128 rows of W. As in a dense
product, a kept NaN or infinity of x reaches every row of such a panel.

Shapes: O rows, K columns, R height, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from triton.runtime import JITFunction

from sparseflow_kernels.triton_device import divisor
from sparseflow_kernels.triton_lines import Lines, check_read
from sparseflow_kernels.triton_panel_jit import panel_spmm_kernel
from sparseflow_kernels.triton_panels import CHUNK, STEP, Panels
from sparseflow_kernels.triton_powers import check_least, check_powers


@dataclass(frozen=True)
class PanelConfig:
    """How one program works: on a panel times `tokens`, `depth` columns a step, with `warps` warps.

    `stages`: steps under way at once.
    """

    tokens: int
    depth: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        check_powers(self, "tokens", "warps")
        check_least(self, 1, "stages")
        # Panels end with a whole step, and begin steps with a whole chunk: weights are read without a look at the end.
        if self.depth not in (CHUNK, STEP):
            raise ValueError(f"depth: expected {CHUNK} or {STEP}, got {self.depth}")

    def shared(self, height: int) -> int:
        """Bytes of shared memory that it may take."""
        return 2 * self.stages * self.depth * (height + self.tokens)


def panel_spmm(
    panels: Panels,
    packed: Tensor,
    x: Tensor,
    lines: Lines,
    dtype: torch.dtype,
    bias_O: Tensor | None = None,
    relu: bool = False,
    config: PanelConfig | None = None,
) -> Tensor:
    """relu(W x + b): (O, tokens), contiguous, of that dtype.

    `packed`: the values in panels (`triton_panel_pack.fill_panels`), of the dtype of x: bfloat16 or float16.
    `ValueError` where shapes, devices or dtypes do not fit.
    """
    check_panels(panels, x, lines)
    if packed.shape != (panels.slots * panels.height,) or packed.dtype != x.dtype:
        raise ValueError(
            f"expected {panels.slots * panels.height} packed values of {x.dtype}, "
            f"got shape {tuple(packed.shape)} of {packed.dtype}; pack them anew"
        )
    if bias_O is not None and bias_O.shape != (panels.rows,):
        raise ValueError(f"expected a bias of shape ({panels.rows},), got {tuple(bias_O.shape)}")
    y = x.new_empty(panels.rows, lines.tokens, dtype=dtype)
    if y.numel():
        _launch(panels, packed, x, lines, bias_O, relu, config or default_config(panels.height, x.device), y)
    return y


def default_config(height: int, device: torch.device) -> PanelConfig:
    """What to use where nothing was measured."""
    return INTERPRETED if device.type == "cpu" else DEFAULT["hip" if torch.version.hip else "cuda"][height]


# By vendor and height: two programs or more on each multiprocessor, since a product waits for the second-level cache.
DEFAULT = {
    "cuda": {64: PanelConfig(128, 64, 4, 3), 128: PanelConfig(128, 64, 8, 3)},
    "hip": {64: PanelConfig(128, 32, 4, 2), 128: PanelConfig(128, 32, 8, 2)},
}
# The interpreter takes as long for a small tile as for a large one.
INTERPRETED = PanelConfig(256, 64, 4, 1)
_SPACE = [
    PanelConfig(tokens, depth, warps, stages)
    for tokens, warps in ((64, 4), (128, 4), (128, 8), (256, 8))
    for depth in (32, 64)
    for stages in (2, 3, 4)
]
# Products of a step, for a warp, whose factors it can hold in registers beside its sums.
_PRODUCTS = 1 << 17


def configs(height: int, shared: int, from_shared: bool) -> list[PanelConfig]:
    """What is worth measuring on a chip with that much shared memory, in bytes.

    `from_shared`: its tensor cores read both factors from there (sm_90, sm_100) and not from registers.
    """
    return [
        config
        for config in _SPACE
        if config.shared(height) <= shared
        and (from_shared or height * config.tokens * config.depth <= _PRODUCTS * config.warps)
    ]


def check_panels(panels: Panels, x: Tensor, lines: Lines) -> None:
    """`ValueError` where x is not what the panels and lines need, so that nothing is read out of its bounds."""
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"expected x of bfloat16 or float16, got {x.dtype}; use slices for others")
    check_read(x, lines, panels.columns, panels.index.device)


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, which takes the bits of bfloat16 for integers."""
    return not isinstance(panel_spmm_kernel, JITFunction)


def _launch(
    panels: Panels,
    packed: Tensor,
    x: Tensor,
    lines: Lines,
    bias: Tensor | None,
    relu: bool,
    config: PanelConfig,
    y: Tensor,
) -> None:
    tiles_of_line = -(-lines.run // config.tokens)
    panel_spmm_kernel[(panels.count * lines.count * tiles_of_line,)](
        packed,
        panels.index,
        panels.starts,
        panels.widths,
        x,
        lines.offsets,
        lines.table,
        bias,
        y,
        panels.count,
        panels.rows,
        lines.run,
        tiles_of_line,
        lines.pitch,
        lines.tokens,
        HEIGHT=panels.height,
        CHUNK=CHUNK,
        TOKENS=config.tokens,
        DEPTH=config.depth,
        UNIT=divisor(lines.unit),
        RELU=relu,
        WIDEN=is_interpreted(),
        num_warps=config.warps,
        num_stages=config.stages,
    )
