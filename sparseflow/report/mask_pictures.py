"""Masks as pictures: which input pixels a first layer still reads, and whole masks made small."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparseflow.report.words import selected

MasksByRound = Mapping[int, Mapping[str, NDArray[np.bool_]]]
_ROUNDS_SHOWN = 5
_LAYERS_SHOWN = 6
_MOST_ROWS, _MOST_COLUMNS = 160, 320
# The page's ticket colour in the light theme; alpha carries the picture, so it reads on dark paper as well.
_INK = (0.0, 0.447, 0.698)


@dataclass(frozen=True)
class Picture:
    """A PNG as a `data:` address, with its width and height in cells and a caption."""

    address: str
    width: int
    height: int
    caption: str


def input_pictures(masks: MasksByRound, input_shape: Sequence[int], always: int | None) -> list[Picture]:
    """Kept weights of the first layer per input pixel, (H, W), for a few rounds of masks.

    Empty unless the first layer is a matrix (out, in) of a flattened image, (H, W) or (C, H, W).
    All pictures share one scale: full colour where the most weights are kept.
    """
    rounds = selected(sorted(masks), _ROUNDS_SHOWN, always)
    if len(input_shape) < 2 or not rounds:
        return []
    kept: dict[int, NDArray[np.float64]] = {}
    for chosen in rounds:
        first = next(iter(masks[chosen].values()), None)
        if first is None or first.ndim != 2 or first.shape[1] != int(np.prod(input_shape)):
            return []
        per_pixel = first.sum(axis=0, dtype=np.float64).reshape(-1, *input_shape[-2:])
        kept[chosen] = per_pixel.sum(axis=0)
    # Round 0 keeps every weight and would leave the sparse rounds pale.
    most = max(float(picture.max()) for number, picture in kept.items() if number or len(kept) == 1)
    return [
        _picture(picture / max(most, 1.0), f"round {number}: {picture.mean():.3g} weights a pixel")
        for number, picture in kept.items()
    ]


def mask_pictures(masks: Mapping[str, NDArray[np.bool_]]) -> list[Picture]:
    """The first masks of one round, (out, everything else), as block densities at most 160 × 320 large."""
    pictures = []
    for name, mask in list(masks.items())[:_LAYERS_SHOWN]:
        matrix = mask.reshape(mask.shape[0], -1)
        rows, columns = matrix.shape
        small = _block_means(matrix, _MOST_ROWS, _MOST_COLUMNS)
        pictures.append(_picture(small, f"{name}: {rows} × {columns}, {100 * matrix.mean():.3g} % kept"))
    return pictures


def _block_means(matrix: NDArray[np.bool_], most_rows: int, most_columns: int) -> NDArray[np.float64]:
    rows, columns = matrix.shape
    row_edges = np.linspace(0, rows, min(rows, most_rows) + 1).astype(int)
    column_edges = np.linspace(0, columns, min(columns, most_columns) + 1).astype(int)
    sums = np.add.reduceat(matrix.astype(np.float64), row_edges[:-1], axis=0)
    sums = np.add.reduceat(sums, column_edges[:-1], axis=1)
    means: NDArray[np.float64] = sums / np.outer(np.diff(row_edges), np.diff(column_edges))
    return means


def _picture(opacity: NDArray[np.float64], caption: str) -> Picture:
    from matplotlib.image import imsave

    rgba = np.empty((*opacity.shape, 4))
    rgba[..., :3] = _INK
    rgba[..., 3] = np.clip(opacity, 0.0, 1.0)
    buffer = io.BytesIO()
    imsave(buffer, rgba, format="png", metadata={"Software": "sparseflow"})
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/png;base64,{encoded}", opacity.shape[1], opacity.shape[0], caption)
