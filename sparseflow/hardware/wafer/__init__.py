"""The machine model of a weight-streaming wafer: what a step *would* take on a CS-2 or CS-3. Nothing here is measured.

Closed forms per layer and pass (`layer`), a whole step (`step`), an event simulation of a small grid that checks the
closed forms (`simulate`), and published figures to hold the model against (`published`). Cerebras publishes no kernel
source: this is a model of a weight-streaming wafer built on public slides and logs, not of its kernels.
"""

from sparseflow.hardware.wafer.layer import Layer, layer_of
from sparseflow.hardware.wafer.step import Prediction, predict
from sparseflow.hardware.wafer.systems import SYSTEMS, System, find_system
from sparseflow.hardware.wafer.transformer import Transformer

__all__ = ["SYSTEMS", "Layer", "Prediction", "System", "Transformer", "find_system", "layer_of", "predict"]
