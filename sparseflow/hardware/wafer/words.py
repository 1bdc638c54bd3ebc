"""A prediction in words and as plain data. Every line of it is labelled as modelled."""

from __future__ import annotations

from typing import Any

from sparseflow.hardware.traffic import size
from sparseflow.hardware.wafer.energy import SPREAD
from sparseflow.hardware.wafer.mapping import saturation_tokens
from sparseflow.hardware.wafer.step import Prediction


def describe(step: Prediction) -> str:
    """The step with its parts, what binds, memory and energy."""
    system, kept = step.wafer.system, step.memory
    limits = ", ".join(f"{limit} {share:.0%}" for limit, share in step.limits.items())
    low, high = step.energy.between
    lines = [
        f"modelled: a step of {step.batch:,} samples on {step.systems} × {system.name} ({system.wafer})",
        f"  {step.seconds:.4g} s, {step.samples_per_second:.4g} samples/s; {step.micro_batches} micro-batches of "
        f"{step.micro_batch} on {step.grid.lines} lines × {step.grid.columns:,} columns of cores",
        *(f"  {seconds:>12.6f} s  {name}" for name, seconds in step.parts.items()),
        f"  what binds, by time: {limits}",
        f"  tokens a micro-batch from which on no layer waits for wafer I/O: {saturation(step):,}",
        f"  a system receives {size(round(step.bytes_in))} of weights and sends {size(round(step.bytes_out))} of "
        "gradients",
        f"  on the wafer {size(round(kept.resident))} of {size(round(kept.capacity))}; spilled "
        f"{size(round(kept.spilled))} a micro-batch; the store keeps {size(round(kept.store))}",
        f"  energy {step.energy.joules:,.0f} J, between {low:,.0f} and {high:,.0f} (± {SPREAD:.0%})",
    ]
    return "\n".join(lines)


def to_json(step: Prediction) -> dict[str, Any]:
    """Plain data: seconds, bytes and joules of a step, by part and by layer."""
    kept = step.memory
    return {
        "modelled": True,
        "system": step.wafer.system.name,
        "systems": step.systems,
        "batch": step.batch,
        "micro_batch": step.micro_batch,
        "micro_batches": step.micro_batches,
        "grid": {"lines": step.grid.lines, "columns": step.grid.columns},
        "utilisation": step.wafer.utilisation,
        "seconds": step.seconds,
        "samples_per_second": step.samples_per_second,
        "parts": step.parts,
        "limits": step.limits,
        "saturation_tokens": saturation(step),
        "bytes_in": step.bytes_in,
        "bytes_out": step.bytes_out,
        "memory": {**vars(kept), "resident": kept.resident},
        "energy": {"joules": step.energy.joules, "fabric": step.energy.fabric, "between": step.energy.between},
        "layers": [
            {
                "name": one.layer,
                "pass": one.name,
                "count": count,
                "seconds": one.seconds,
                "limit": one.limit,
                "compute": one.compute,
                "reduction": one.reduction,
                "io": one.io,
                "fill": one.fill,
                "bytes_in": one.bytes_in,
                "bytes_out": one.bytes_out,
            }
            for count, one in step.passes
        ],
    }


def saturation(step: Prediction) -> int:
    """Tokens of a micro-batch from which on no layer waits for wafer I/O, each in the mapping that suits it best."""
    shapes = {(layer.outputs, layer.inputs, layer.density): layer for layer in step.network.layers}
    return max(saturation_tokens(layer, step.wafer) for layer in shapes.values())
