"""Dynamic loss scaling: large enough that small gradients survive a 16-bit format, small enough that none overflows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_SMALLEST = 2.0**-14
_GOOD_STEPS = 2000


@dataclass
class LossScale:
    """A power of two that doubles after 2000 finite steps, up to `largest`, and halves at each other one.

    The bounds and the number of steps are those of cerebras_pytorch 2.10.0 (amp/grad_scaler.py). used: whether the loss
    of this step was scaled.
    """

    largest: float
    value: float = field(init=False)
    good_steps: int = field(init=False, default=0)
    used: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.value = self.largest

    def update(self, finite: bool) -> None:
        """Takes note of a step's gradients."""
        if not finite:
            self.value, self.good_steps = max(self.value / 2, _SMALLEST), 0
            return
        self.good_steps += 1
        if self.good_steps == _GOOD_STEPS:
            self.value, self.good_steps = min(self.value * 2, self.largest), 0

    def state_dict(self) -> dict[str, float]:
        """Plain data."""
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """The inverse."""
        self.value, self.good_steps = float(state["value"]), int(state["good_steps"])
