"""Does the recipe's batch come out even over the processes?"""

from __future__ import annotations

from sparseflow.doctor.finding import Finding, ok, wrong
from sparseflow.recipes import TrainingSpec

_NAME = "batch"


def check_batch(spec: TrainingSpec, world: int) -> Finding:
    """The recipe's batch as processes × accumulate × micro-batch."""
    batch, parts = spec.batch_size, world * spec.accumulate
    product = f"{world} processes × accumulate={spec.accumulate}"
    if batch % parts == 0:
        return ok(_NAME, f"{batch} = {product} × a micro-batch of {batch // parts}")
    below, above = batch - batch % parts, batch - batch % parts + parts
    others = " or ".join(f"--set training.batch_size={size}" for size in (below, above) if size)
    return wrong(
        _NAME,
        f"training.batch_size: expected a multiple of {parts} = {product}, got {batch}; {others}, or other processes",
    )
