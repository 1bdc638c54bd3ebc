"""Global pruning of many weights: time against torch's own, and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparseflow.bench.clock import fresh_process, ratios, take_turns
from sparseflow.bench.figure import Figure
from sparseflow.masks.masks import Masks
from sparseflow.masks.select import prune_tensors
from sparseflow.masks.sharded import prune_slices
from sparseflow.masks.slices import cut_evenly

_REPEATS = 7
_LAYER = (2000, 1000)
_DENSITY = 0.2

# Whole tensors, or slices as ranks hold them; here one process holds all.
Kind = Literal["tensors", "slices"]


def prune_globally(kind: Kind, count: int, faster: float, peak: float) -> list[Figure]:
    """Speed over torch's own global pruning, `count` weights of which 80 % go, and bytes a weight above the weights."""
    name = f"prune {count // 1_000_000} million weights globally"
    title = f"{name}: torch / ours"
    weights = _weights(count)
    check = _check(PRUNERS[kind](weights), weights)
    if check != "ok":
        return [Figure(title, "x", faster, True, (), check)]
    sides = take_turns({"ours": lambda: PRUNERS[kind](weights), "torch": lambda: _torch_masks(weights)}, _REPEATS)
    peaks = tuple(float(fresh_process(_PEAK, kind, str(count))) for _ in range(_REPEATS))
    return [
        Figure(title, "x", faster, True, ratios(sides["torch"], sides["ours"]), seconds=sides),
        Figure(f"{name}: peak memory", "B/weight", peak, False, peaks),
    ]


def prune_whole(weights: Mapping[str, Tensor]) -> Masks:
    """The masks from whole tensors."""
    return prune_tensors(weights, density=_DENSITY)


def prune_cut(weights: Mapping[str, Tensor]) -> Masks:
    """The masks from slices, of which one process holds all."""
    slices = cut_evenly(weights)
    shapes = {name: weight.shape for name, weight in weights.items()}
    kept = prune_slices(slices, shapes, density=_DENSITY)
    return Masks({part.name: part.values.view(shapes[part.name]) for part in kept})


PRUNERS: dict[Kind, Callable[[Mapping[str, Tensor]], Masks]] = {"tensors": prune_whole, "slices": prune_cut}


def measure_peak(kind: Kind, count: int) -> float:
    """Peak resident bytes a weight above the weights, of this process, a fresh one. Reads /proc: Linux only.

    What pruning loads once a process is not counted.
    """
    # Loads the compiler of the kernel that counts: once a process, whatever the number of weights.
    PRUNERS[kind]({"warm": torch.randn(_LAYER)})
    weights = _weights(count)
    # Sets the peak back to what is resident now.
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = _resident("VmRSS")
    masks = PRUNERS[kind](weights)
    assert masks.total == count
    return (_resident("VmHWM") - before) / count


_PEAK = (
    "import sys\n"
    "from sparseflow.bench.pruning import measure_peak\n"
    "print(measure_peak(sys.argv[1], int(sys.argv[2])))\n"
)


def _weights(count: int) -> dict[str, Tensor]:
    return {f"layer{number}": torch.randn(_LAYER) for number in range(count // (_LAYER[0] * _LAYER[1]))}


def _check(ours: Masks, weights: Mapping[str, Tensor]) -> str:
    theirs = _torch_masks(weights)
    # torch breaks ties at the threshold as it likes; random floats have next to none.
    differing = sum(int((ours[name] != theirs[name]).sum()) for name in ours)
    return "ok" if ours.nnz == theirs.nnz and differing <= 100 else "masks differ"


def _torch_masks(weights: Mapping[str, Tensor]) -> Masks:
    model = nn.Module()
    layers = []
    for name, weight in weights.items():
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        model.add_module(name, layer)
        layers.append((layer, "weight"))
    torch_prune.global_unstructured(layers, pruning_method=torch_prune.L1Unstructured, amount=1 - _DENSITY)
    return Masks({name: model.get_submodule(name).get_buffer("weight_mask").bool() for name in weights})


def _resident(key: str) -> int:
    """Bytes, from a line of /proc/self/status."""
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(key))
