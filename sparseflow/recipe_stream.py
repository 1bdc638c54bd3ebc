"""What a recipe says of streaming: its key `stream`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from sparseflow.recipe_pruning import Strict
from sparseflow.training.streaming import Streaming


class StreamSpec(Strict):
    """Weights and optimizer state in a store: see `Streaming`. store: a folder; by default one in the run's."""

    store: str | None = None
    format: Literal["fp32", "fp16", "bf16", "cb16"] = "fp32"
    systems: int = Field(1, ge=1)
    spill: bool = False
    buffer_limit: int | None = Field(None, gt=0)

    def streaming(self, folder: Path | None, seed: int) -> Streaming:
        """For one seed of the run in `folder`; in memory where there is no such folder, as to check a recipe."""
        place = None if folder is None else folder / "store" if self.store is None else Path(self.store)
        store = None if place is None else place / f"seed-{seed}"
        return Streaming(store, self.format, self.systems, self.spill, self.buffer_limit)
