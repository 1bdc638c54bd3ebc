"""Sensitivity: what the loss, or its gradient, does when a weight goes. For pruning at initialisation.

Both look at the loss on the data they are given, as it is: no dropout, BatchNorm by batch. Each returns a criterion for
one model, which scores whatever weights it is called with: those that are pruned already must be zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparseflow.masks.criteria import Criterion, Scores
from sparseflow.training.probe import Batch, Loss, Probe, weighed


def snip(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> Criterion:
    """Scores |∂L/∂w · w|: SNIP, Lee et al., 2019 (arXiv:1810.02340), eqs. 4 and 5.

    L is the mean over all examples of all batches; the absolute value is taken of the mean, not before it. Departures:
    eq. 5's division by the sum of all scores is left out, for it ranks nothing differently; several batches may be
    given, where the paper takes one. Costs a forward and a backward pass a batch.
    """
    probe = Probe(model)

    def criterion(weights: Mapping[str, Tensor], seed: int = 0) -> Scores:
        parameters = probe.set(weights)
        found: list[Tensor] | None = None
        with probe.at_init():
            for share, batch in weighed(batches):
                own = _gradients(share * probe.loss(batch, loss), parameters)
                found = _added(found, own)
        return Scores(_times(weights, found), absolute=True)

    return criterion


def grasp(model: nn.Module, batches: Sequence[Batch], loss: Loss, temperature: float = 200.0) -> Criterion:
    """Scores w · (Hg): GraSP, Wang et al., 2020 (arXiv:2002.07376), eq. 8 with the opposite sign.

    g is the gradient and H the Hessian of the mean loss of output / temperature, both by the prunable weights alone.
    There -w · (Hg) is scored and the *highest* go: to shrink a weight changes |g|²/2 by -w · (Hg), so that what stays
    is what keeps the gradient flowing. Here the lowest go, as of every criterion. Costs two passes a batch, one of them
    backward twice; of the last batch, just that one. Over ranks, each takes the g of its own data.
    """
    probe = Probe(model)

    def criterion(weights: Mapping[str, Tensor], seed: int = 0) -> Scores:
        parameters = probe.set(weights)
        *others, last = weighed(batches)

        def gradients(share: float, batch: Batch, graph: bool) -> list[Tensor]:
            return _gradients(share * probe.loss(batch, loss, temperature), parameters, graph)

        def flow(own: Sequence[Tensor], direction: Sequence[Tensor]) -> list[Tensor]:
            product = sum(((a * b).sum() for a, b in zip(own, direction, strict=True)), torch.zeros(()).to(own[0]))
            return _gradients(product, parameters)

        with probe.at_init():
            # Its graph is kept for the second pass.
            of_last = gradients(*last, graph=True)
            mean = [own.detach() for own in of_last]
            for share, batch in others:
                mean = _added(mean, gradients(share, batch, graph=False))
            found = flow(of_last, mean)
            del of_last
            for share, batch in others:
                found = _added(found, flow(gradients(share, batch, graph=True), mean))
        return Scores(_times(weights, found), absolute=False)

    return criterion


def _gradients(value: Tensor, parameters: Sequence[nn.Parameter], graph: bool = False) -> list[Tensor]:
    """Zeros for a weight that the value does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(parameter) for parameter in parameters]
    return list(torch.autograd.grad(value, parameters, create_graph=graph, materialize_grads=True))


def _added(total: list[Tensor] | None, more: list[Tensor]) -> list[Tensor]:
    return more if total is None else [a + b for a, b in zip(total, more, strict=True)]


def _times(weights: Mapping[str, Tensor], found: Sequence[Tensor] | None) -> dict[str, Tensor]:
    assert found is not None
    # At least float32: products of half-precision numbers underflow.
    dtype = {name: torch.promote_types(weight.dtype, torch.float32) for name, weight in weights.items()}
    return {
        name: weight.to(dtype[name]) * other.detach().to(dtype[name])
        for (name, weight), other in zip(weights.items(), found, strict=True)
    }
