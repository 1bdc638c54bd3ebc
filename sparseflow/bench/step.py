"""One whole training step, of our sparse model and of the dense ones that it is held against."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseflow.bench.networks import Case
from sparseflow.hardware.plan import plan, sparsify
from sparseflow.masks.masks import Masks
from sparseflow.training.proof import ProofError, prove_equal_to_dense
from sparseflow.training.pruning import prunable_weights
from sparseflow.training.seeds import build_seeded

# So small that the thousandth step meets the same numbers as the first.
_RATE = 1e-6


class Step:
    """Calling it clears the gradients and does forward, loss, backward and one fused AdamW update of `model`.

    `untrained` are parameters that the optimizer leaves out.
    """

    def __init__(self, model: nn.Module, x: Tensor, target: Tensor, untrained: Iterable[Tensor] = ()) -> None:
        self.model, self.x, self.target = model, x, target
        self.parameters = list(model.parameters())
        left_out = {id(parameter) for parameter in untrained}
        trained = [parameter for parameter in self.parameters if id(parameter) not in left_out]
        # A lone layer without bias can leave nothing to train.
        self.optimizer: torch.optim.Optimizer | None = None
        if trained:
            self.optimizer = torch.optim.AdamW(trained, lr=_RATE, fused=True)

    def __call__(self) -> None:
        # What zero_grad does, without its bookkeeping, on every side alike.
        self.x.grad = None
        for parameter in self.parameters:
            parameter.grad = None
        self.backward(self.model(self.x))
        if self.optimizer is not None:
            self.optimizer.step()

    def backward(self, y: Tensor) -> None:
        """Backward from the loss, or from the given gradient of a lone layer's output."""
        if self.target.is_floating_point():
            torch.autograd.backward(y, self.target)
        else:
            torch.autograd.backward(F.cross_entropy(y.flatten(0, -2), self.target.flatten()))


def dense_steps(case: Case) -> dict[str, Step]:
    """The dense network as torch runs it: for images in both memory formats."""
    steps = {"dense": Step(build_seeded(case.build, 0), case.x, case.target)}
    if case.x.dim() == 4:
        model = build_seeded(case.build, 0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x, target = _channels_last(case.x), _channels_last(case.target)
        steps["dense channels_last"] = Step(model, x, target)
    return steps


def sparse_step(case: Case, density: float, backend: str) -> Step:
    """Our step, on the backend named or, with "auto", on what the plan chooses."""
    model, masks = masked_model(case, density)
    chosen = plan(model, masks, case.x, backend)
    return Step(sparsify(model, masks, plan=chosen), case.x, case.target)


def masked_model(case: Case, density: float) -> tuple[nn.Module, Masks]:
    """The dense network with the same random share of every prunable weight kept and zeros elsewhere, and its masks."""
    model = build_seeded(case.build, 0)
    generator = torch.Generator().manual_seed(1)
    masks = {}
    for name, weight in prunable_weights(model, case.prunable).items():
        kept = max(1, round(density * weight.numel()))
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[torch.randperm(weight.numel(), generator=generator)[:kept]] = True
        masks[name] = mask.view(weight.shape)
        weight.mul_(masks[name])
    return model, Masks(masks)


def fault(step: Step) -> str:
    """ "ok" where the sparse model computes what the dense one does, outputs and gradients; else what differs."""
    try:
        prove_equal_to_dense(step.model, step.x)
    except ProofError as error:
        return str(error)
    finally:
        step.x.grad = None
    return "ok"


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() != 4:
        return tensor
    stored = tensor.detach().contiguous(memory_format=torch.channels_last)
    return stored.requires_grad_(tensor.requires_grad)
