"""Which kernel each of a layer's three products gets on the backend `triton`: the candidates, and the best of them.

A product is named as in a layout: `gather64` (a gather over slices of 64 rows), `panel64` (tensor cores over panels
of 64 rows), `dense` (a scratch weight and the library), followed in brackets by the kernel's configuration where that
was tuned: `gather64[lanes=16,tokens=32]`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch

from sparseflow.hardware.backends.triton_cost import Call, ChipModel, Dtype, Family
from sparseflow.hardware.workload import Geometry, Workload

Kind = Literal["gather", "panel", "dense"]
Which = Literal["forward", "dgrad", "wgrad"]

WHICH: tuple[Which, ...] = ("forward", "dgrad", "wgrad")
GATHER_HEIGHTS = (16, 32, 64, 128)
# Programs may take some rows of a slice, so that one height serves most layers; small ones waste less in low slices.
_USUAL_HEIGHT, _LOW_HEIGHT = 64, 16
PANEL_HEIGHTS = (64, 128)
DTYPES: dict[torch.dtype, Dtype] = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

# What a plan without a sample assumes, and says so.
ASSUMED_ROWS = 4096
# A kernel must be so much faster than dense: what a measurement can tell apart.
_MARGIN = 1.02
# Steps of a slice that share a tile of dy in the gathered weight gradient.
_SHARED_STEPS = 4

_NAME = re.compile(r"(?:(gather|panel)([1-9]\d*)|dense)(?:\[([a-z_=,\d]*)\])?")


@dataclass(frozen=True)
class Product:
    """The kernel of one product: its kind, the height of its slices or panels, and its configuration as text."""

    kind: Kind
    height: int = 0
    config: str = ""

    def __str__(self) -> str:
        name = self.kind if self.kind == "dense" else f"{self.kind}{self.height}"
        return f"{name}[{self.config}]" if self.config else name

    @classmethod
    def parse(cls, text: str) -> Product:
        """The inverse of `str`. `ValueError` for anything else."""
        match = _NAME.fullmatch(text)
        height = int(match[2] or 0) if match else -1
        kind = cast(Kind, match[1] or "dense") if match else "dense"
        allowed = {"dense": (0,), "gather": GATHER_HEIGHTS, "panel": PANEL_HEIGHTS}[kind]
        if match is None or height not in allowed or (kind == "dense" and match[3]):
            gathers = ", ".join(f"gather{one}" for one in GATHER_HEIGHTS)
            panels = ", ".join(f"panel{one}" for one in PANEL_HEIGHTS)
            raise ValueError(f"expected dense, {gathers}, {panels}, some with a configuration; got {text!r}")
        return cls(kind, height, match[3] or "")


DENSE = Product("dense")
_GATHERS = (Product("gather", _USUAL_HEIGHT), Product("gather", _LOW_HEIGHT))
_PANELS = tuple(Product("panel", height) for height in PANEL_HEIGHTS)


@dataclass(frozen=True)
class Layout:
    """A native order of the backend: `triton/1/<geometry>/<forward>/<dgrad>/<wgrad>`."""

    geometry: Geometry
    forward: Product
    dgrad: Product
    wgrad: Product

    def __str__(self) -> str:
        return f"triton/1/{self.geometry}/{self.forward}/{self.dgrad}/{self.wgrad}"

    @classmethod
    def parse(cls, text: str) -> Layout:
        """The inverse of `str`. `ValueError` for a layout of another backend or version."""
        parts = text.split("/")
        if parts[:2] != ["triton", "1"] or len(parts) != 6:
            raise ValueError(
                f"backend 'triton': expected a layout such as 'triton/1/linear/gather64/gather64/dense', got {text!r}; "
                "plan anew"
            )
        return cls(Geometry.parse(parts[2]), *(Product.parse(part) for part in parts[3:]))


# Seconds of each candidate of each product.
Times = Mapping[Which, Mapping[Product, float]]


@dataclass(frozen=True)
class Decision:
    """What was chosen for a workload, from which times, and how these came to be."""

    layout: Layout
    times: Times
    how: str

    def __str__(self) -> str:
        return ", ".join(self._words(which) for which in WHICH if self.times.get(which)) + f"; {self.how}"

    def _words(self, which: Which) -> str:
        chosen: Product = getattr(self.layout, which)
        times = self.times[which]
        others = {product: seconds for product, seconds in times.items() if product != chosen}
        if not others:
            return f"{which} {chosen}"
        rival = DENSE if DENSE in others else min(others, key=others.__getitem__)
        return f"{which} {chosen} ({others[rival] / times[chosen]:.2f}x of {rival})"


def candidates(work: Workload, which: Which) -> tuple[Product, ...]:
    """All that could compute a product, dense first. An input gradient that nobody needs is left to dense."""
    if which == "dgrad" and not work.needs_dx:
        return (DENSE,)
    # Tensor cores multiply float32 in TF32 only, which is not what was asked for.
    return (DENSE, *_GATHERS) if work.compute_dtype == torch.float32 else (DENSE, *_GATHERS, *_PANELS)


def modelled(work: Workload, chip: ChipModel) -> Times:
    """The modelled seconds of each candidate. To the model all heights of a gather are one: the usual is it."""
    low = _GATHERS[1]
    some = {which: [one for one in candidates(work, which) if one != low] for which in WHICH}
    return {which: {one: chip.seconds(call_of(work, which, one)) for one in some[which]} for which in WHICH}


def decide(work: Workload, times: Times, how: str) -> Decision:
    """The fastest candidate of each product; dense where it is there and no other is clearly faster."""
    best = {which: _best(times[which]) for which in WHICH}
    return Decision(Layout(work.geometry, best["forward"], best["dgrad"], best["wgrad"]), times, how)


def without(times: Times, product: Product) -> Times:
    """The times of all others, where there are others."""
    return {
        which: {one: seconds for one, seconds in some.items() if one != product or len(some) == 1}
        for which, some in times.items()
    }


def assumed(work: Workload) -> Workload:
    """The workload as the choice sees it: with a number of rows, and without what does not matter to it.

    Layers of about one density are one, and what follows a product costs each kernel the same. Whether tensors come
    and go feature-major stays: gathers and panels copy those that do not, dense products those that should.
    """
    rows = work.rows or ASSUMED_ROWS
    density = float(f"{work.density:.1e}")
    plain = replace(work, bias=False, relu=False, threads=1)
    return replace(plain, rows=rows, density=density)


def call_of(work: Workload, which: Which, product: Product) -> Call:
    """A product of a layer as the cost model sees it."""
    outputs, *others = work.shape
    inputs = math.prod(others)
    shape = (outputs, inputs)
    if which == "dgrad":
        # By phases of the stride: each output pixel takes part in as many of them as the stride leaves taps.
        phases = math.prod(work.geometry.stride)
        shape = (others[0] * phases, max(1, outputs * inputs // (others[0] * phases)))
    family = cast(Family, product.kind if which != "wgrad" or product.kind == "dense" else f"{product.kind}_wgrad")
    height = _SHARED_STEPS if family == "gather_wgrad" else max(1, product.height)
    nnz = max(1, round(work.density * work.weights))
    return Call(family, DTYPES[work.compute_dtype], *shape, nnz, max(1, work.positions), height)


def _best(times: Mapping[Product, float]) -> Product:
    best = min(times, key=times.__getitem__)
    return DENSE if DENSE in times and times[DENSE] <= _MARGIN * times[best] else best
