"""The chips that the cost model of `triton` knows, and how a device is matched to one.

Sources: NVIDIA's data sheets of the A100 80 GB SXM, H100 SXM, H200 SXM and HGX B200, AMD's of the Instinct MI300X, all
for dense products. No maker publishes the rate of the cache that gathers read from, except AMD (17.2 TB/s peak of the
Infinity Cache, CDNA 3 white paper): NVIDIA's are assumed, the H100's as 5.5 TB/s and the others' as many bytes a
multiprocessor and clock. What is assumed too high or too low here, the fitted efficiencies take up.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch

from sparseflow.hardware.backends.triton_cost import ChipModel
from sparseflow.hardware.cache import cache_folder

A100 = ChipModel("A100 SXM 80 GB", tensor_flops=312e12, fp32_flops=19.5e12, hbm=2.039e12, l2=3.6e12)
H100 = ChipModel("H100 SXM", tensor_flops=989e12, fp32_flops=67e12, hbm=3.35e12, l2=5.5e12)
H200 = ChipModel("H200 SXM", tensor_flops=989e12, fp32_flops=67e12, hbm=4.8e12, l2=5.5e12)
B200 = ChipModel("B200", tensor_flops=2250e12, fp32_flops=80e12, hbm=8e12, l2=6.2e12)
MI300X = ChipModel("MI300X", tensor_flops=1307e12, fp32_flops=163e12, hbm=5.3e12, l2=17.2e12)
# Triton's interpreter: microseconds where a GPU takes picoseconds, so that no plan prefers it.
INTERPRETER = ChipModel("Triton's interpreter", tensor_flops=1e8, fp32_flops=1e8, hbm=1e9, l2=1e8, launch=2e-3)

CHIPS: dict[str, ChipModel] = {"A100": A100, "H100": H100, "H200": H200, "B200": B200, "MI300X": MI300X}


def chip_of(device: torch.device) -> ChipModel:
    """The model of a device: the interpreter's for the CPU; of a GPU its own, with efficiencies if they were fitted.

    A GPU that the table does not know is modelled by the chip of its generation, with its name; where there is no
    GPU at all it is an H100, for plans of layers that will run elsewhere.
    """
    if device.type != "cuda":
        return INTERPRETER
    if not torch.cuda.is_available():
        return _fitted(H100)
    return _of_gpu(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))


def fit_path(chip: ChipModel) -> Path | None:
    """Where a bench keeps the fitted model of a chip for the plans of this machine; None where nothing is kept."""
    folder = cache_folder()
    return None if folder is None else folder / f"chip-{chip.name.lower().replace(' ', '-')}.json"


@functools.cache
def _of_gpu(name: str, capability: tuple[int, int]) -> ChipModel:
    for short, chip in CHIPS.items():
        if short in name:
            return _fitted(chip)
    if torch.version.hip is not None:
        return MI300X
    return B200 if capability >= (10, 0) else H100 if capability >= (9, 0) else A100


def _fitted(chip: ChipModel) -> ChipModel:
    path = fit_path(chip)
    if path is None:
        return chip
    try:
        return ChipModel.from_json(json.loads(path.read_text()))
    # A file that is not there, or is none of ours, is no fit; neither JSON nor text are ValueErrors.
    except (OSError, ValueError):
        return chip
