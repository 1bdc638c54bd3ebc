"""What criteria cost beyond the passes that they need, and SynFlow's hundred prunings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseflow.bench.clock import ratios, take_turns, threads
from sparseflow.bench.figure import Figure
from sparseflow.hardware.model import dense_weights
from sparseflow.models import lenet_300_100
from sparseflow.training.pruning import prune
from sparseflow.training.sensitivity import grasp, snip

_LIMIT = 1.2
_SYNFLOW_SECONDS = 10.0
# As many examples as the recipes `snip` and `grasp` look at, in one batch.
_EXAMPLES = 600
_TEMPERATURE = 200.0


def criteria() -> list[Figure]:
    """SNIP and GraSP over the same passes written out; SynFlow on LeNet-300-100."""
    torch.manual_seed(0)
    model, data = lenet_300_100(), (torch.randn(_EXAMPLES, 784), torch.arange(_EXAMPLES) % 10)
    return [over_passes(model, data), over_passes(model, data, grows=True), synflow_seconds(model)]


def over_passes(model: nn.Module, data: tuple[Tensor, Tensor], grows: bool = False) -> Figure:
    """One scoring, from the model to the scores, over the same gradients taken by hand; of GraSP if `grows`."""
    name = "GraSP" if grows else "SNIP"
    weights = dense_weights(model)
    parameters = [model.get_parameter(each) for each in weights]

    def scores() -> list[Tensor]:
        found = (grasp if grows else snip)(model, [data], F.cross_entropy)(weights, 0).tensors
        return [found[each] for each in weights]

    def passes() -> list[Tensor]:
        output = model(data[0]) / (_TEMPERATURE if grows else 1.0)
        own = torch.autograd.grad(F.cross_entropy(output, data[1]), parameters, create_graph=grows)
        if grows:
            inner = torch.stack([(one * one.detach()).sum() for one in own]).sum()
            return list(torch.autograd.grad(inner, parameters))
        return list(own)

    title = f"{name}, LeNet-300-100, {_EXAMPLES} examples, over its passes"
    with threads(1):
        for score, weight, gradient in zip(scores(), parameters, passes(), strict=True):
            if not torch.allclose(score, weight * gradient, rtol=1e-3, atol=1e-9):
                return Figure(title, "×", _LIMIT, False, (), "the scores are not weight · gradient")
        sides = take_turns({"criterion": scores, "passes": passes})
    return Figure(title, "×", _LIMIT, False, ratios(sides["criterion"], sides["passes"]), seconds=sides)


def synflow_seconds(model: nn.Module, inputs: int = 784, repeats: int = 3) -> Figure:
    """A hundred prunings down to one weight in a hundred, each by new scores."""
    title, image = "SynFlow, LeNet-300-100, 100 prunings", [(torch.zeros(1, inputs), torch.zeros(1))]
    masks = prune(model, 0.01, criterion="synflow", data=image)
    if masks.nnz != round(0.01 * masks.total):
        return Figure(title, "s", _SYNFLOW_SECONDS, False, (), f"kept {masks.nnz} of {masks.total} weights")
    sides = take_turns({"synflow": lambda: prune(model, 0.01, criterion="synflow", data=image)}, repeats)
    return Figure(title, "s", _SYNFLOW_SECONDS, False, sides["synflow"], seconds=sides)
