"""How long one product of a layer takes on a GPU, modelled: the slowest of its limits, over an efficiency.

    seconds = max(L2, HBM, arithmetic) / eta + launches

The limits are what the chip's data sheet allows; each eta is one number per kernel family and dtype, fitted to a
chip by `sparseflow bench --backend triton`, and a guess before that. Every figure from here is called modelled.

Shapes: O rows and K columns of the weight as a matrix, Z kept weights, T tokens (or output pixels of a batch).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, get_args

Family = Literal["gather", "gather_wgrad", "panel", "panel_wgrad", "dense"]
Dtype = Literal["fp32", "bf16", "fp16"]

FAMILIES: tuple[Family, ...] = get_args(Family)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

_FORMAT = "sparseflow chip model 1"


@dataclass(frozen=True)
class Call:
    """One product of one layer by one family of kernels.

    `height` is how many rows of the weight share what a panel gathers, and how many steps of a slice share a tile of
    dy in a gathered weight gradient; forward and input gradient of the gather family share nothing.
    """

    family: Family
    dtype: Dtype
    rows: int
    columns: int
    nnz: int
    tokens: int
    height: int = 1

    @property
    def itemsize(self) -> int:
        """Bytes of a number of x, y and the packed values."""
        return 4 if self.dtype == "fp32" else 2


@dataclass(frozen=True)
class ChipModel:
    """The limits of one chip and how near to them each family of kernels comes.

    `tensor_flops`: dense 16-bit products with float32 sums, operations a second. `fp32_flops`: multiply-adds outside
    of tensor cores, operations a second. `hbm`, `l2`: bytes a second. `launch`: seconds of one kernel launch.
    `eta`: `eta_<family>_<dtype>` → fraction of the slowest limit; above 1 where a cache above L2 serves a part.
    """

    name: str
    tensor_flops: float
    fp32_flops: float
    hbm: float
    l2: float
    launch: float = 5e-6
    eta: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, call: Call) -> float:
        """The modelled time of a call."""
        return max(self.limits(call).values()) / self.efficiency(call) + launches(call) * self.launch

    def efficiency(self, call: Call) -> float:
        """The eta of this call's family and dtype."""
        name = eta_name(call.family, call.dtype)
        return self.eta.get(name, GUESSED[name])

    def limits(self, call: Call) -> dict[str, float]:
        """Seconds by L2, HBM and arithmetic, each alone and at full rate."""
        return {
            "L2": _l2_bytes(call) / self.l2,
            "HBM": _hbm_bytes(call) / self.hbm,
            "arithmetic": _flops(call) / self._rate(call),
        }

    def fitted(self, eta: Mapping[str, float]) -> ChipModel:
        """The same chip with these measured efficiencies in place of what it has. `ValueError` for unknown names."""
        for name, value in eta.items():
            if name not in GUESSED or not value > 0:
                raise ValueError(f"expected an efficiency above 0 of one of {', '.join(GUESSED)}; got {name}={value}")
        return replace(self, eta={**self.eta, **eta})

    def to_json(self) -> dict[str, object]:
        """Plain data, as a bench writes it."""
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> ChipModel:
        """The inverse of `to_json`. `ValueError` for anything else."""
        if data.get("format") != _FORMAT:
            raise ValueError(f"expected a chip's model with format {_FORMAT!r}, got {data.get('format')!r}")
        fields = {key: value for key, value in data.items() if key != "format"}
        try:
            model = cls(**fields)  # type: ignore[arg-type]
            return replace(model, eta={}).fitted(model.eta)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"expected a chip's model as written by a bench: {error}; {json.dumps(data)}") from None

    def _rate(self, call: Call) -> float:
        if call.dtype == "fp32":
            return self.fp32_flops
        # Unpacking a 16-bit number takes as many instruction slots as the multiply-add that it is for.
        return self.fp32_flops / 2 if call.family in ("gather", "gather_wgrad") else self.tensor_flops


def eta_name(family: Family, dtype: Dtype) -> str:
    """The name of an efficiency in JSON: `eta_gather_fp32`."""
    return f"eta_{family}_{dtype}"


def occupied(call: Call) -> float:
    """The fraction of columns that have a kept weight in a panel of `height` rows, of a random mask: 1 - s^height."""
    density = call.nnz / max(1, call.rows * call.columns)
    return 1 - (1 - density) ** call.height


def launches(call: Call) -> int:
    """Kernel launches of a call: packing the values or clearing, filling and gathering a scratch weight, and it."""
    return 3 if call.family == "dense" else 2


def _l2_bytes(call: Call) -> float:
    gathered = call.tokens * call.itemsize
    if call.family == "gather":
        return call.nnz * gathered
    if call.family == "gather_wgrad":
        return call.nnz * gathered * (1 + 1 / call.height)
    if call.family in ("panel", "panel_wgrad"):
        # Each panel reads the columns that it has, and a weight gradient its own rows of dy besides.
        panels = call.rows / call.height
        return panels * occupied(call) * call.columns * gathered + call.rows * gathered
    # Libraries tile so that L2 does not limit them.
    return 0.0


def _hbm_bytes(call: Call) -> float:
    activations = (call.rows + call.columns) * call.tokens * call.itemsize
    if call.family == "dense":
        # A scratch weight written and read, and the values with their places.
        return activations + 2 * call.rows * call.columns * call.itemsize + 12 * call.nnz
    if call.family in ("panel", "panel_wgrad"):
        return activations + 2 * occupied(call) * call.rows * call.columns * call.itemsize + 12 * call.nnz
    # Packing reads a value and its place and writes it; the product reads it with a 16-bit column.
    return activations + (8 + 2 * call.itemsize + 2) * call.nnz


def _flops(call: Call) -> float:
    if call.family in ("gather", "gather_wgrad"):
        return 2.0 * call.nnz * call.tokens
    share = 1.0 if call.family == "dense" else occupied(call)
    return 2.0 * share * call.rows * call.columns * call.tokens


# Guesses, which stand until a chip was measured: that a library's dense product comes near its limit, a gather to two
# thirds, and a product of gathered tiles, which waits for addresses before it can load, to somewhat less.
_GUESSES: dict[Family, float] = {"dense": 0.8, "gather": 0.67, "gather_wgrad": 0.6, "panel": 0.6, "panel_wgrad": 0.5}
GUESSED: dict[str, float] = {eta_name(family, dtype): guess for family, guess in _GUESSES.items() for dtype in DTYPES}
