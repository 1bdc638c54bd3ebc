"""Predictions on a calibrated machine, for those who know a model by its dimensions, or one layer by its workload."""

from __future__ import annotations

from dataclasses import dataclass

from sparseflow.hardware.wafer.calibration import wafer
from sparseflow.hardware.wafer.layer import Pass
from sparseflow.hardware.wafer.network import Network, layer_of
from sparseflow.hardware.wafer.step import Prediction, predict, update_seconds
from sparseflow.hardware.wafer.transformer import Transformer
from sparseflow.hardware.workload import Workload


@dataclass(frozen=True)
class LayerPrediction:
    """One layer's passes on a wafer by itself, and the store's seconds for its update. Modelled."""

    forward: Pass
    dgrad: Pass
    wgrad: Pass
    update: float


def predict_training(
    transformer: Transformer,
    batch: int,
    system: str = "cs2",
    *,
    density: float = 1.0,
    systems: int = 1,
    micro_batch: int | None = None,
    densest: float | None = None,
    imbalance: float | None = None,
) -> Prediction:
    """A step of `batch` samples over all `systems`, the blocks' weights at `density`. Modelled; see `step.predict`.

    `densest` is the highest density that the schedule will have, `imbalance` λ where a mask is not random. `ValueError`
    for a machine that does not exist, for sizes that are not positive and for a micro-batch that does not fit.
    """
    network = transformer.network(density, imbalance)
    return predict(network, batch, wafer(system), systems=systems, micro_batch=micro_batch, densest=densest)


def predict_layer(work: Workload, system: str = "cs2", imbalance: float | None = None) -> LayerPrediction:
    """What one layer's step would take on a wafer that does nothing else, in the mapping that suits it best.

    Without the fixed time that every step has. Modelled: no answer to how long the emulation takes on this machine.
    """
    layer = layer_of("layer", work)
    machine = wafer(system)
    step = predict(Network((layer if imbalance is None else layer.at(work.density, imbalance),)), 1, machine)
    forward, dgrad, wgrad = (one for _, one in step.passes)
    return LayerPrediction(forward, dgrad, wgrad, update_seconds(layer, machine))
