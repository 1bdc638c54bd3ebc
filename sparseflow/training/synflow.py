"""SynFlow: how much flows through a weight, whatever the data.

Tanaka et al., 2020 (arXiv:2006.05467), eq. 2 and algorithm 1: R = 1ᵀ (Π |W_l|) 1, the sum of the outputs for an input
of ones, scores ∂R/∂|w| · |w|. Of networks of linear layers, ReLU and pooling, every layer's scores add up to R, and
what flows into a unit flows out: a layer that gets smaller gets higher scores, so that it is not pruned away. That
takes many small prunings; pruned once, as with any other criterion, layers do collapse.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparseflow.hardware.sample import Sample, call, untouched
from sparseflow.masks.criteria import Criterion, Scores
from sparseflow.training.probe import Probe

# Prunings, each by the same fraction of the survivors.
ITERATIONS = 100


def synflow(model: nn.Module, sample: Sample) -> Criterion:
    """Scores ∂R/∂|w| · |w|, float64, of one pruning. Of `sample`, an input batch, only the shape is used.

    The network is a copy in float64, in eval mode, with the absolute values of all parameters; offsets (biases, running
    means) are zero, for what they add has not come through the weights before. ValueError for an input without
    floating-point tensors, such as tokens: there are no ones to put in.
    """
    probe = Probe(model)
    probe.model.double()
    _make_positive(probe.model)
    ones = _ones(sample)

    def criterion(weights: Mapping[str, Tensor], seed: int = 0) -> Scores:
        parameters = probe.set({name: weight.abs() for name, weight in weights.items()})
        with untouched(probe.model), torch.enable_grad():
            output = call(probe.model, ones)
            if not isinstance(output, Tensor):
                raise ValueError(f"synflow: expected a model that returns a tensor, got {type(output).__name__}")
            gradients = torch.autograd.grad(output.sum(), parameters, materialize_grads=True)
        flows = {
            name: gradient * parameter.detach() for name, gradient, parameter in zip(weights, gradients, parameters)
        }
        # They are never negative, and so are counted faster.
        return Scores(flows, absolute=True)

    return criterion


def _make_positive(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.abs_()
            if name.rpartition(".")[2].startswith("bias") or name.endswith("_bias"):
                parameter.zero_()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.zero_()


def _ones(sample: Sample) -> Sample:
    """One example of ones, on the device of the sample. `ValueError` where there is nothing to put them into."""
    if isinstance(sample, Tensor):
        ones: Sample = _one(sample)
        found: list[object] = [sample]
    elif isinstance(sample, Mapping):
        ones = {key: _one(value) if isinstance(value, Tensor) else value for key, value in sample.items()}
        found = list(sample.values())
    else:
        ones = tuple(_one(value) if isinstance(value, Tensor) else value for value in sample)
        found = list(sample)
    if not any(isinstance(value, Tensor) and value.is_floating_point() for value in found):
        kinds = ", ".join(str(value.dtype) if isinstance(value, Tensor) else type(value).__name__ for value in found)
        raise ValueError(
            f"synflow: expected an input of floating-point numbers, which it replaces by ones, got {kinds}; choose "
            "another criterion, such as snip"
        )
    return ones


def _one(tensor: Tensor) -> Tensor:
    return torch.ones_like(tensor[:1], dtype=torch.float64) if tensor.is_floating_point() else tensor[:1]
