"""The machine model of a weight-streaming wafer: what a step *would* take on a CS-2 or CS-3. Nothing here is measured.

Closed forms per layer and pass (`layer`), a whole step (`step`), an event simulation of a small grid that checks the
closed forms (`simulate`), and published figures to hold the model against (`published`). Cerebras publishes no kernel
source: this is a model of a weight-streaming wafer built on public slides and logs, not of its kernels.
"""

from sparseflow.hardware.wafer.calibration import wafer
from sparseflow.hardware.wafer.layer import Layer, Wafer
from sparseflow.hardware.wafer.network import Network, network_of
from sparseflow.hardware.wafer.predictions import predict_layer, predict_training
from sparseflow.hardware.wafer.step import Prediction, predict
from sparseflow.hardware.wafer.systems import SYSTEMS, System, find_system
from sparseflow.hardware.wafer.transformer import Transformer

__all__ = [
    "SYSTEMS",
    "Layer",
    "Network",
    "Prediction",
    "System",
    "Transformer",
    "Wafer",
    "find_system",
    "network_of",
    "predict",
    "predict_layer",
    "predict_training",
    "wafer",
]
